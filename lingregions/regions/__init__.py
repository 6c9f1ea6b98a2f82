"""Regions: sets of parameters found by a score, given by place or read from a file; their algebra and geometry."""

from lingregions.regions.algebra import complement, equals, intersect, restrict, subtract, union
from lingregions.regions.file import load, save
from lingregions.regions.geometry import counts, density, total
from lingregions.regions.region import Provenance, Region, Selection
from lingregions.regions.select import SELECTORS, select

__all__ = [
    "SELECTORS",
    "Provenance",
    "Region",
    "Selection",
    "complement",
    "counts",
    "density",
    "equals",
    "intersect",
    "load",
    "restrict",
    "save",
    "select",
    "subtract",
    "total",
    "union",
]
