"""The chips that a plan can be made for, and what a topology's name says of its links.

Rates are the makers' own, per device as jax counts them (for v4 and v5p a chip of two cores):

    v4   https://cloud.google.com/tpu/docs/v4
    v5e  https://cloud.google.com/tpu/docs/v5e
    v5p  https://cloud.google.com/tpu/docs/v5p
    v6e  https://cloud.google.com/tpu/docs/v6e

`hbm_bytes` is what the compiler lets a program use, as its out-of-memory message says; the pages
give 32, 16, 95 and 32 GB. `link` is the interconnect's rate a chip, one way, over its number of
ports. `clock` is the peak rate over the FLOPs of the matrix units in a cycle, and turns the
compiler's cycles into seconds. With it a bfloat16 product of two matrices of 8,192 squared is
estimated at 0.88 of the peak on v5e, 0.90 on v5p, 0.70 on v6e and 0.45 on v4 (libtpu 0.0.42.1).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Final

from prompteol_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of one device.

    Attributes:
        peak: bfloat16 FLOP a second; bandwidth: HBM bytes a second.
        link: bytes a second through one port, one way.
        clock: cycles a second.
        pod: chips along each axis of the largest slice; only a slice's axes that fill the pod's
            (v5e, v6e) or are multiples of 4 (v4, v5p) close to a ring.
        host: chips of one host, along each axis.
    """

    name: str
    hbm_bytes: int
    peak: float
    bandwidth: float
    link: float
    clock: float
    pod: tuple[int, ...]


GIB: Final = 2**30
CHIPS: Final = {
    chip.name: chip
    for chip in (
        Chip("v4", 31 * GIB, 275e12, 1228e9, 50e9, 1.05e9, (16, 16, 16)),
        Chip("v5e", 63 * GIB // 4, 197e12, 819e9, 50e9, 1.503e9, (16, 16)),
        Chip("v5p", 95 * GIB, 459e12, 2765e9, 100e9, 1.751e9, (16, 16, 24)),
        Chip("v6e", 125 * GIB // 4, 918e12, 1600e9, 100e9, 1.751e9, (16, 16)),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a chip's name and how many stand along each axis."""

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def devices(self) -> int:
        """Devices, which are chips."""
        return math.prod(self.shape)

    def ring(self, axis: int) -> bool:
        """Say whether the links along an axis close to a ring."""
        size = self.shape[axis]
        if len(self.shape) == 2:
            return size == self.chip.pod[axis]
        return size >= 4 and size % 4 == 0 and all(n % 4 == 0 for n in self.shape)


def parse_topology(text: str) -> Topology:
    """Read `v5e:2x4`.

    Raises: UserError that says which chips and forms there are.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", text.strip())
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(n) for n in match[2].split("x")) if match else ()
    fits = chip is not None and len(shape) == len(chip.pod) and min(shape) > 0
    if not fits or any(n > most for n, most in zip(sorted(shape), sorted(chip.pod), strict=True)):
        forms = ", ".join(f"{c.name} up to {'x'.join(map(str, c.pod))}" for c in CHIPS.values())
        raise UserError(f"topology {text!r} is not CHIP:AxB or CHIP:AxBxC: there are {forms}")
    return Topology(chip, shape)


# Slices that can be ordered, smallest first.
SLICES: Final = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
}


def slices(chip: Chip) -> Iterator[Topology]:
    """The usual slices of a chip, from the smallest."""
    return (Topology(chip, shape) for shape in SLICES[len(chip.pod)])
