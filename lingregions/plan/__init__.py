"""Plan: what a job needs on a slice before the slice is rented - memory from the real compiler, time from counting."""
