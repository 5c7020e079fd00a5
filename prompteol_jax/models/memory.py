"""Whether the weights of a model fit a device, from shapes alone."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh

from prompteol_jax.models import Config, build
from prompteol_jax.models.decoder import Decoder


def device_bytes(model: Decoder) -> int:
    """Return the bytes of a device that the arrays of a model, or their placeholders, take."""
    leaves = jax.tree.leaves(model)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def why_fsdp(config: Config, mesh: Mesh, memory: int, *, copies: int = 1, **how: Any) -> str | None:
    """Return why matrices have to be sharded over data; None where the weights fit without that.

    Args:
        memory: bytes of a device that may be filled.
        copies: arrays of the size of the weights that a device holds; training every weight needs
            four: weights, gradients and two moments.
        how: arguments of `build.abstract_decoder`.
    """
    if mesh.shape["data"] == 1:
        return None
    replicated, sharded = (
        copies * device_bytes(build.abstract_decoder(config, mesh, fsdp=fsdp, **how))
        for fsdp in (False, True)
    )
    if replicated <= memory:
        return None
    what = "weights" if copies == 1 else "weights, gradients and moments"
    return (
        f"the {what} need {replicated / 1e9:.2f} GB of a device's {memory / 1e9:.2f} GB, and "
        f"{sharded / 1e9:.2f} GB with --fsdp, which is chosen"
    )
