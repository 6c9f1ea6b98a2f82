"""Find, test and use the linguistic regions of large language models."""

VERSION = "0.1.0"
