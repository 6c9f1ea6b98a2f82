"""Regions: sets of parameters found by a score, given by place or read from a file; their algebra and geometry."""

from lingregions.regions.algebra import complement, equals, intersect, restrict, subtract, union
from lingregions.regions.file import load, save
from lingregions.regions.geometry import counts, density, total
from lingregions.regions.matched import match
from lingregions.regions.region import Provenance, Region, Selection, declared
from lingregions.regions.select import SELECTORS, parse, select

__all__ = [
    "SELECTORS",
    "Provenance",
    "Region",
    "Selection",
    "complement",
    "counts",
    "declared",
    "density",
    "equals",
    "intersect",
    "load",
    "match",
    "parse",
    "restrict",
    "save",
    "select",
    "subtract",
    "total",
    "union",
]
