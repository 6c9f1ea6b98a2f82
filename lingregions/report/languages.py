"""How a table shows a language: its name, its family, its place beside its relatives.

Only display depends on this. Indo-European languages are shown by branch (Slavic, Romance, ...), because that is the
level at which linguistic regions are compared; a code that `corpus.languages` does not know is shown as it is.
"""

from collections.abc import Sequence

from lingregions.corpus.languages import LANGUAGES, Language, understood

_FAMILIES = ["Indo-European", *dict.fromkeys(entry.family for entry in LANGUAGES.values())]
_BRANCHES = list(dict.fromkeys(entry.branch for entry in LANGUAGES.values()))


def _find(code: str) -> Language | None:
    """The language of a code, or None."""
    return LANGUAGES.get(understood(code) or "")


def name(code: str) -> str:
    """English name of a language code."""
    entry = _find(code)
    return entry.name if entry else code


def family(code: str) -> str:
    """Family of a language code, the branch within Indo-European; empty if it is not known."""
    entry = _find(code)
    if entry is None:
        return ""
    return entry.branch if entry.family == "Indo-European" else entry.family


def arrange(codes: Sequence[str]) -> list[str]:
    """Codes with relatives side by side, families as in the registry, unknown ones last; otherwise as they came."""

    def place(code: str) -> tuple[int, int]:
        entry = _find(code)
        if entry is None:
            return len(_FAMILIES), 0
        return _FAMILIES.index(entry.family), _BRANCHES.index(entry.branch)

    return sorted(codes, key=place)
