"""One layer's part of an array of all layers, and kernels that read it where it lies.

XLA copies the part of a stack that a kernel is given out of the stack first. A kernel can find it
by itself: its blocks have the layer as one more coordinate, which is known before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec


class Part(NamedTuple):
    """One layer's part of an array `[L, ...]`."""

    stack: Any
    layer: Any

    def value(self) -> jax.Array:
        """The part by itself."""
        return jax.lax.dynamic_index_in_dim(self.stack, self.layer, keepdims=False)

    def each(self, change: Callable[[jax.Array], jax.Array]) -> Part:
        """The part of a stack all of whose layers are changed: free where only layouts are."""
        return Part(jax.vmap(change)(self.stack), self.layer)


def place(rows: PartitionSpec) -> Part:
    """How a part is cut over a mesh whose rows are cut like this."""
    return Part(PartitionSpec(None, *rows), PartitionSpec())


def alone(x: Any) -> Part:
    """An array as the one part of a stack."""
    return Part(x[None], jnp.int32(0))


def kernel_call(
    program: Callable[..., None],
    parts: Sequence[Part],
    arrays: Sequence[jax.Array],
    *,
    grid: tuple[int, ...],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Any,
    **options: Any,
) -> Any:
    """`pl.pallas_call` of a program on parts of stacks and on arrays, in this order.

    Args:
        in_specs, out_specs: blocks as they are of a part by itself.
    """

    def of_part(n: int, spec: pl.BlockSpec) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, *spec.block_shape),
            lambda *at: (at[-1][n], *spec.index_map(*at[:-1])),
            pipeline_mode=spec.pipeline_mode,
        )

    def of_array(spec: pl.BlockSpec) -> pl.BlockSpec:
        return pl.BlockSpec(
            spec.block_shape,
            lambda *at: spec.index_map(*at[:-1]),
            pipeline_mode=spec.pipeline_mode,
        )

    found = [of_part(n, spec) for n, spec in enumerate(in_specs[: len(parts)])]
    plain = [of_array(spec) for spec in in_specs[len(parts) :]]
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=grid,
        in_specs=found + plain,
        out_specs=jax.tree.map(of_array, out_specs),
    )
    call = pl.pallas_call(lambda _, *refs: program(*refs), grid_spec=spec, **options)
    stacks = [part.stack for part in parts]
    if not options.get("interpret"):
        stacks = [
            pltpu.with_memory_space_constraint(s, pltpu.HBM) if len(s) > 1 else s for s in stacks
        ]
    return call(jnp.stack([part.layer for part in parts]), *stacks, *arrays)
