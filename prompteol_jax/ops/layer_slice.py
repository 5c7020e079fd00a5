"""One layer's slice of an array of all layers.

XLA copies the slice of a stack that a kernel is given out of the stack first. A kernel can find it
itself: its blocks have the layer as one more coordinate, which is known before it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


class LayerSlice(NamedTuple):
    """One layer's slice of an array `[L, ...]`."""

    stack: Any
    layer: Any

    def value(self) -> jax.Array:
        """Return the slice as an array."""
        return jax.lax.dynamic_index_in_dim(self.stack, self.layer, keepdims=False)

    def map(self, change: Callable[[jax.Array], jax.Array]) -> LayerSlice:
        """Apply `change` to every layer and slice the result; free if it only changes layout."""
        return LayerSlice(jax.vmap(change)(self.stack), self.layer)


def spec(rows: PartitionSpec) -> LayerSlice:
    """Return the partition specs of a slice of this spec."""
    return LayerSlice(PartitionSpec(None, *rows), PartitionSpec())


def unstacked(x: Any) -> LayerSlice:
    """Return an array as the one slice of a stack."""
    return LayerSlice(x[None], jnp.int32(0))
