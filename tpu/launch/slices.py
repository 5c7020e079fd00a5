"""What Google Cloud calls a slice of TPUs: the accelerator type and the image of its hosts.

Source: cloud.google.com/tpu/docs, "TPU configurations" and "TPU software versions".
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from prompteol_jax.errors import UserError


class Generation(NamedTuple):
    """One generation of TPUs.

    Attributes:
        accelerator: what stands before the size in gcloud's `--accelerator-type`.
        image: gcloud's `--version` (of a VM) or `--runtime-version` (of a queued resource).
        counts: what the size counts: chips, or TensorCores of which a chip has two.
    """

    accelerator: str
    image: str
    counts: str


GENERATIONS: Final = {
    "v4": Generation("v4", "tpu-ubuntu2204-base", "TensorCores"),
    "v5e": Generation("v5litepod", "v2-alpha-tpuv5-lite", "chips"),
    "v5p": Generation("v5p", "v2-alpha-tpuv5", "TensorCores"),
    "v6e": Generation("v6e", "v2-alpha-tpuv6e", "chips"),
}


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
    generation = GENERATIONS.get(match[1]) if match else None
    if generation is None:
        counted = ", ".join(f"{g}-N (N {kind.counts})" for g, kind in GENERATIONS.items())
        raise UserError(f"slice {name!r} is none of {counted}, such as v5e-8")
    size = int(match[2])
    if generation.counts != "chips" and size % 2:
        raise UserError(
            f"slice {name!r}: {match[1]} counts TensorCores, two a chip: give an even N"
        )
    chips = size if generation.counts == "chips" else size // 2
    return Slice(f"{generation.accelerator}-{size}", generation.image, chips)
