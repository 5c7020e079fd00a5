"""All that is known of the generations of TPUs, in one table, and the slices that there are.

Rates are the makers' own, per device as jax counts them (for v4 and v5p a chip of two cores, for
tpu7x one of the two cores of a chip):

    v4     https://cloud.google.com/tpu/docs/v4
    v5e    https://cloud.google.com/tpu/docs/v5e
    v5p    https://cloud.google.com/tpu/docs/v5p
    v6e    https://cloud.google.com/tpu/docs/v6e
    tpu7x  https://docs.cloud.google.com/tpu/docs/tpu7x

`hbm_bytes` is what the compiler lets a program use, as its out-of-memory message says; the pages
give 32, 16, 95, 32 and 192 GB a chip. `link` is the interconnect's rate a chip, one way, over its
number of ports. `clock` is the peak rate over the FLOPs of the matrix units in a cycle, and turns
the compiler's cycles into seconds. With it a bfloat16 product of two matrices of 8,192 squared is
estimated at 0.88 of the peak on v5e, 0.90 on v5p, 0.70 on v6e, 0.81 on tpu7x and 0.45 on v4 (libtpu
0.0.42.1).
Names are those of cloud.google.com/tpu/docs, "TPU configurations" and "TPU software versions".
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Final

from prompteol_jax.errors import UserError, listed, nearest

GIB: Final = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPUs: rates of one device, and its names.

    Attributes:
        hbm_bytes: Bytes of HBM that a program can use.
        peak: FLOP a second in bfloat16.
        bandwidth: Bytes of HBM a second.
        link: Bytes a second through one port, one way.
        clock: Cycles a second.
        vector: Numbers that the vector units change in a cycle: 8 x 128 lanes, 4 slots, each core.
        pod: Chips along each axis of the largest slice. Only the axes of a slice that fill the
            pod's (v5e, v6e) or are multiples of 4 (the others) close to a ring.
        accelerator: Word before the size in gcloud's `--accelerator-type`; None where it has none.
        image: Value of gcloud's `--version` (VM) and `--runtime-version` (queued resource).
        cores: TensorCores of a chip, where gcloud's sizes count them; 1 where they count chips.
        kinds: Names that the device gives itself in jax, its `device_kind`.
        devices: Devices of a chip, as jax counts them.
    """

    name: str
    hbm_bytes: int
    peak: float
    bandwidth: float
    link: float
    clock: float
    vector: int
    pod: tuple[int, ...]
    accelerator: str | None
    image: str | None
    cores: int
    kinds: tuple[str, ...]
    devices: int = 1

    def __str__(self) -> str:
        return f"{self.name} up to {'x'.join(map(str, self.pod))}"


# The one table: another generation is another row.
_ROWS: Final = (
    Chip(
        name="v4",
        hbm_bytes=31 * GIB,
        peak=275e12,
        bandwidth=1228e9,
        link=50e9,
        clock=1.05e9,
        vector=8192,
        pod=(16, 16, 16),
        cores=2,
        kinds=("TPU v4",),
        accelerator="v4",
        image="tpu-ubuntu2204-base",
    ),
    Chip(
        name="v5e",
        hbm_bytes=63 * GIB // 4,
        peak=197e12,
        bandwidth=819e9,
        link=50e9,
        clock=1.503e9,
        vector=4096,
        pod=(16, 16),
        cores=1,
        kinds=("TPU v5 lite", "TPU v5e"),
        accelerator="v5litepod",
        image="v2-alpha-tpuv5-lite",
    ),
    Chip(
        name="v5p",
        hbm_bytes=95 * GIB,
        peak=459e12,
        bandwidth=2765e9,
        link=100e9,
        clock=1.751e9,
        vector=8192,
        pod=(16, 16, 24),
        cores=2,
        kinds=("TPU v5", "TPU v5p"),
        accelerator="v5p",
        image="v2-alpha-tpuv5",
    ),
    Chip(
        name="v6e",
        hbm_bytes=125 * GIB // 4,
        peak=918e12,
        bandwidth=1600e9,
        link=100e9,
        clock=1.751e9,
        vector=4096,
        pod=(16, 16),
        cores=1,
        kinds=("TPU v6 lite", "TPU v6e"),
        accelerator="v6e",
        image="v2-alpha-tpuv6e",
    ),
    Chip(
        name="tpu7x",
        hbm_bytes=379 * GIB // 4,
        peak=2307e12 / 2,
        bandwidth=7380e9 / 2,
        link=100e9,
        clock=2.2e9,
        vector=4096,
        pod=(16, 24, 24),
        cores=2,
        devices=2,
        kinds=("TPU7x",),
        accelerator=None,
        image=None,
    ),
)
CHIPS: Final = {chip.name: chip for chip in _ROWS}
# Slices that can be ordered, smallest first, by the number of axes. Of three axes there are more:
# those whose sizes are multiples of 4.
SLICES: Final = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a chip and the number of them along each axis."""

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Chips of the slice."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Devices of the slice, as jax counts them."""
        return self.chips * self.chip.devices

    def ring(self, axis: int) -> bool:
        """Say whether the links along an axis close to a ring."""
        size = self.shape[axis]
        if len(self.shape) == 2:
            return size == self.chip.pod[axis]
        return size >= 4 and size % 4 == 0 and all(n % 4 == 0 for n in self.shape)


def slices(chip: Chip) -> Iterator[Topology]:
    """Yield the usual slices of a chip, from the smallest."""
    return (Topology(chip, shape) for shape in SLICES[len(chip.pod)])


def parse_topology(text: str) -> Topology:
    """Read `v5e:2x4`.

    Raises: UserError that lists the chips, and the slices of the chip that is named.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", text.strip())
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None:
        known = [str(topology) for chip in CHIPS.values() for topology in slices(chip)]
        raise UserError(
            f"topology {text!r} is not CHIP:AxB or CHIP:AxBxC: there are "
            f"{listed(CHIPS.values())}{nearest(text, known)}"
        )
    found = Topology(chip, tuple(int(n) for n in match[2].split("x")))
    if not _is_slice(found):
        known = [str(slice_) for slice_ in slices(chip)]
        turned = [str(s) for s in slices(chip) if sorted(s.shape) == sorted(found.shape)]
        more = "" if len(chip.pod) == 2 else ", and larger ones of multiples of 4 in rising order"
        raise UserError(
            f"topology {text!r} is no slice of {chip}: there are {listed(known)}{more}"
            f"{nearest(text, turned or known)}"
        )
    return found


def _is_slice(topology: Topology) -> bool:
    """Say whether a slice can be ordered."""
    shape, pod = topology.shape, topology.chip.pod
    if shape in SLICES[len(pod)]:
        return True
    rising = len(shape) == len(pod) == 3 and list(shape) == sorted(shape)
    return rising and all(
        n and n % 4 == 0 and n <= most for n, most in zip(shape, pod, strict=True)
    )


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip that has this name in jax; None for a device that is not in the table."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)
