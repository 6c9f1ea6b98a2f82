"""Corpora: text of thirty languages, from any source, as samples that every host and every resume sees alike.

`corpus.open` is the front door; `Corpus` and `batch.Batch` are what the rest of the package sees. Nothing is imported
here: `languages` answers what a language is called before JAX is there.
"""
