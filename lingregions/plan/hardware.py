"""Accelerators: what a chip holds and does; TPU slices by the names that Google Cloud has, and single GPUs by theirs.

v5e-16 (or v5litepod-16) is 16 chips of v5e; v4-16 is 8 chips of v4, because the names of v4 and v5p count TensorCores,
two a chip; 2xv5e-16 is two slices of 16 chips.
"""

import dataclasses
import difflib
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip or card (one JAX device).

    Attributes:
      name: as slices are named by.
      memory: bytes of high-bandwidth memory that a program may use.
      flops: bfloat16 floating-point operations a second at best; 0 without units for them.
      bandwidth: bytes a second between the chip and its memory.
      link: bytes a second into one chip from its neighbours, over all its links.
      cores: what a slice's name counts, a chip.
      dimensions: of the torus; 0 for a card.
      options: what `jax.experimental.topologies` needs to know beside the shape.
      single: of a card, float32 operations a second; 0 where `flops` is taken for them.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    cores: int
    dimensions: int
    options: tuple[tuple[str, str], ...] = ()
    single: float = 0.0

    def at(self, dtype: str) -> "Chip":
        """Return the chip as it computes in a dtype."""
        return dataclasses.replace(self, flops=self.single) if dtype == "float32" and self.single else self


# FLOP/s, bytes/s and Gbit/s of the links (1 byte = 8 bit): Google Cloud TPU documentation, "System architecture", the
# pages of v4, v5e, v5p and v6e. Memory: the limit that the XLA:TPU compiler of libtpu 0.0.42 states (it keeps a part).
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", round(30.75 * GIB), 275e12, 1228e9, 2400e9 / 8, 2, 3, (("chip_config_name", "megacore"),)),
        Chip("v5e", round(15.75 * GIB), 197e12, 819e9, 1600e9 / 8, 1, 2),
        Chip("v5p", round(95.74 * GIB), 459e12, 2765e9, 4800e9 / 8, 2, 3),
        Chip("v6e", round(31.25 * GIB), 918e12, 1640e9, 3200e9 / 8, 1, 2),
    )
}
# GPUs by name, from the cheapest to rent to the dearest: NVIDIA's data sheets (SXM, dense; NVLink or PCIe one way).
CARDS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("t4", 16 * 10**9, 0.0, 320e9, 16e9, 1, 0, single=8.1e12),
        Chip("l4", 24 * 10**9, 121e12, 300e9, 32e9, 1, 0, single=30.3e12),
        Chip("rtx4090", 24 * 10**9, 165.2e12, 1008e9, 32e9, 1, 0, single=82.6e12),
        Chip("a100-40g", 40 * 10**9, 312e12, 1555e9, 300e9, 1, 0, single=19.5e12),
        Chip("a100-80g", 80 * 10**9, 312e12, 2039e9, 300e9, 1, 0, single=19.5e12),
        Chip("h100", 80 * 10**9, 989e12, 3350e9, 450e9, 1, 0, single=67e12),
    )
}
# What `device_kind` says of local devices; of several GPUs in one host.
LOCAL: dict[str, Chip] = {
    "TPU v4": CHIPS["v4"],
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],
    "TPU v6 lite": CHIPS["v6e"],
    "H200": Chip("H200", 141 * 10**9, 989e12, 4800e9, 450e9, 1, 1, single=67e12),
    "H100": dataclasses.replace(CARDS["h100"], name="H100", dimensions=1),
    "A100": dataclasses.replace(CARDS["a100-80g"], name="A100", dimensions=1),
}
# Bytes a second into one chip from other slices, over the data centre network: 25 Gbit/s, what a v5e has.
BETWEEN_SLICES = 25e9 / 8
# Shapes by number of chips, of slices that can be asked for.
_FLAT: dict[int, tuple[int, ...]] = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
_DEEP: dict[int, tuple[int, ...]] = {
    **{4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8)},
    **{512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16)},
}
_SHAPES = {2: _FLAT, 3: _DEEP}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind, all of one size.

    Attributes:
      chip: of what they are made.
      chips: in each slice.
      slices: how many.
    """

    chip: Chip
    chips: int
    slices: int = 1

    @property
    def name(self) -> str:
        """The name, as `parse` reads it."""
        if self.chip.name in CARDS:
            return self.chip.name
        return f"{f'{self.slices}x' if self.slices > 1 else ''}{self.chip.name}-{self.chips * self.chip.cores}"

    @property
    def devices(self) -> int:
        """Chips in all."""
        return self.chips * self.slices

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips of one slice along each dimension of the torus."""
        return _SHAPES[self.chip.dimensions][self.chips]

    def description(self) -> tuple[str, dict[str, object]]:
        """Return the name and the keywords that `jax.experimental.topologies.get_topology_desc` wants."""
        keywords: dict[str, object] = dict(self.chip.options)
        if self.slices > 1:
            keywords["num_slices"] = self.slices
        if self.chips == 1:
            keywords["chips_per_host_bounds"] = (1, 1, 1)
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}", keywords


def sizes(chip: Chip) -> list[Topology]:
    """Return the single slices of a chip, from small to large."""
    return [Topology(chip, chips) for chips in _SHAPES[chip.dimensions]]


def parse(name: str) -> Topology:
    """Return the topology of a name such as "v5e-16", "v5litepod-16", "v4-32" or "2xv5e-16", or of a card ("l4").

    Raises:
      ValueError: no such chip, or no slice of that size.
    """
    if name.strip().lower() in CARDS:
        return Topology(CARDS[name.strip().lower()], 1)
    match = re.fullmatch(r"(?:(\d+)x)?(v\d+\w*?)-(\d+)", name.strip().lower().replace("v5litepod", "v5e"))
    forms = f"a topology reads like v5e-16, v4-32 or 2xv5e-16, or is a card, {', '.join(CARDS)}"
    if match is None or match[2] not in CHIPS:
        known = [*CARDS, *(each.name for chip in CHIPS.values() for each in sizes(chip))]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"no topology {name!r}: {forms}; the chips are {', '.join(CHIPS)}{hint}")
    chip, slices, count = CHIPS[match[2]], int(match[1] or 1), int(match[3])
    allowed = _SHAPES[chip.dimensions]
    if slices < 1 or count % chip.cores or count // chip.cores not in allowed:
        listing = ", ".join(f"{chip.name}-{chips * chip.cores}" for chips in allowed)
        counted = f" ({chip.name} counts TensorCores, {chip.cores} a chip)" if chip.cores > 1 else ""
        raise ValueError(f"there is no slice {name!r}; there are {listing}{counted}")
    return Topology(chip, count // chip.cores, slices)
