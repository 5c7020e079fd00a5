"""What every Pallas kernel is written with: a call that reads slices in their stacks, a product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from prompteol_jax.ops.layer_slice import LayerSlice

LANES: Final = 128  # of the vector units: the width that arrays in the core are padded to


def kernel_call(
    program: Callable[..., None],
    slices: Sequence[LayerSlice],
    arrays: Sequence[jax.Array],
    *,
    grid: tuple[int, ...],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Any,
    **options: Any,
) -> Any:
    """Run `pl.pallas_call` of a program on layer slices and on arrays, in this order.

    Args:
        in_specs, out_specs: BlockSpecs as if the layer axis did not exist.
    """

    def of_slice(n: int, spec: pl.BlockSpec) -> pl.BlockSpec:
        shape, index_map = _named(spec)
        return pl.BlockSpec(
            (None, *shape),
            lambda *at: (at[-1][n], *index_map(*at[:-1])),
            pipeline_mode=spec.pipeline_mode,
        )

    def of_array(spec: pl.BlockSpec) -> pl.BlockSpec:
        shape, index_map = _named(spec)
        mode = spec.pipeline_mode
        return pl.BlockSpec(shape, lambda *at: index_map(*at[:-1]), pipeline_mode=mode)

    sliced = [of_slice(n, spec) for n, spec in enumerate(in_specs[: len(slices)])]
    plain = [of_array(spec) for spec in in_specs[len(slices) :]]
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=grid,
        in_specs=sliced + plain,
        out_specs=jax.tree.map(of_array, out_specs),
    )
    call = pl.pallas_call(lambda _, *refs: program(*refs), grid_spec=spec, **options)
    stacks = [part.stack for part in slices]
    if not options.get("interpret"):
        stacks = [
            pltpu.with_memory_space_constraint(s, pltpu.HBM) if len(s) > 1 else s for s in stacks
        ]
    return call(jnp.stack([part.layer for part in slices]), *stacks, *arrays)


def _named(spec: pl.BlockSpec) -> tuple[Sequence[Any], Callable[..., Any]]:
    """Return a BlockSpec's shape and index map, which every kernel here gives."""
    assert spec.block_shape is not None and spec.index_map is not None
    return spec.block_shape, spec.index_map


def matrix_product(one: Any, other: Any, axis: int, other_axis: int) -> Any:
    """Contract an axis each of two matrices of one dtype to float32, as a kernel's program may."""
    precision = jax.lax.Precision.HIGHEST if one.dtype == jnp.float32 else None
    contracted = (((axis,), (other_axis,)), ((), ()))
    return jax.lax.dot_general(
        one, other, contracted, precision=precision, preferred_element_type=jnp.float32
    )
