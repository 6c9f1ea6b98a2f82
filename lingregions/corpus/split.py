"""Split: the name of a part of a text source, with at most one slice by document, such as `train[:90%]`."""

import re

_SLICE = re.compile(r"([^\[\]]*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def parse_split(split: str) -> tuple[str, str, str]:
    """Return (name, start, stop) of a split such as "train[:90%]"; raises ValueError for anything else."""
    match = _SLICE.fullmatch(split.strip())
    if not match:
        raise ValueError(
            "a split is a name with at most one slice by document, such as all[:90%] or train[1000:2000], not "
            f"{split!r}"
        )
    name, start, stop = match.groups()
    return name or "all", start or "", stop or ""


def slice_bounds(start: str, stop: str, n: int) -> tuple[int, int]:
    """Return the slice of n documents that two bounds mean; percentages are rounded to the nearest document."""
    places = []
    for bound, default in ((start, 0), (stop, n)):
        if not bound:
            places.append(default)
            continue
        value = (int(bound[:-1]) * n + 50) // 100 if bound.endswith("%") else int(bound)
        places.append(min(max(value + n if bound.startswith("-") else value, 0), n))
    return places[0], max(places)
