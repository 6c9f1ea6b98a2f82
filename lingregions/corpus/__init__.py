"""Corpora: text of thirty languages, from any source, as samples that every host and every resume sees alike.

`open` is the front door; `Corpus` and `Batch` are what the rest of the package sees.
"""

from lingregions.corpus.batch import Batch
from lingregions.corpus.corpus import Corpus, Counts, open
from lingregions.corpus.languages import LANGUAGES, SCORED, Language, families, language
from lingregions.corpus.special import Policy, policy
from lingregions.corpus.text import Reading, TextError

__all__ = [
    "LANGUAGES",
    "SCORED",
    "Batch",
    "Corpus",
    "Counts",
    "Language",
    "Policy",
    "Reading",
    "TextError",
    "families",
    "language",
    "open",
    "policy",
]
