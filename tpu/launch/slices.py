"""The name that Google Cloud has for a slice of TPUs: accelerator type and image."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from prompteol_jax.errors import UserError, nearest
from tpu.chips import CHIPS

# Generations that `gcloud compute tpus` makes slices of.
_ORDERED: Final = {name: chip for name, chip in CHIPS.items() if chip.accelerator is not None}


class Slice(NamedTuple):
    """A slice by gcloud's names."""

    accelerator_type: str
    image: str
    chips: int


def parse_slice(name: str) -> Slice:
    """Read `v5e-8`: a generation and its size, counted as Google Cloud counts it.

    Raises: UserError that lists the generations.
    """
    match = re.fullmatch(r"(v\d\w*)-([1-9]\d*)", name)
    chip = _ORDERED.get(match[1]) if match else None
    if match is None or chip is None:
        counted = ", ".join(
            f"{c.name}-N (N {'TensorCores' if c.cores > 1 else 'chips'})" for c in _ORDERED.values()
        )
        raise UserError(
            f"slice {name!r} is none of {counted}, such as v5e-8{nearest(name, _known(name))}"
        )
    size = int(match[2])
    if size % chip.cores:
        raise UserError(
            f"slice {name!r}: {chip.name} counts TensorCores, two a chip: give an even N"
        )
    assert chip.image is not None  # as it has a name
    return Slice(f"{chip.accelerator}-{size}", chip.image, size // chip.cores)


def _known(name: str) -> list[str]:
    """Return the names of slices of the size in a wrong name, else of 8."""
    sizes = re.findall(r"-([1-9]\d*)$", name) or ["8"]
    return [f"{chip}-{size}" for chip in _ORDERED for size in sizes]
