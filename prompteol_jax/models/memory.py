"""Whether the weights of a model fit a device, from shapes alone."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax
from jax.sharding import Mesh

from prompteol_jax.models import Config, build

_log = logging.getLogger("prompteol_jax")


def device_bytes(tree: Any) -> int:
    """Return the bytes of a device that arrays or their placeholders take; keys are not counted."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    )


def choose_fsdp(config: Config, mesh: Mesh, memory: int, *, copies: int = 1, **how: Any) -> bool:
    """Return whether the weights fit a device only with matrices sharded over data, and log it.

    Args:
        memory: bytes of a device that may be filled.
        copies: arrays of the size of the weights that a device holds; training every weight needs
            four: weights, gradients and two moments.
        how: arguments of `build.abstract_decoder`.
    """
    if mesh.shape["data"] == 1:
        return False
    replicated, sharded = (
        copies * device_bytes(build.abstract_decoder(config, mesh, fsdp=fsdp, **how))
        for fsdp in (False, True)
    )
    if replicated <= memory:
        return False
    what = "weights" if copies == 1 else "weights, gradients and moments"
    _log.warning(
        "the %s need %.2f GB of a device's %.2f GB, and %.2f GB with --fsdp, which is chosen",
        *(what, replicated / 1e9, memory / 1e9, sharded / 1e9),
    )
    return True
