"""A low-rank update of packed rows as one TPU kernel, forward and one more backward.

    y = scale * drop(x) a b        x [tokens, inputs], a [R, inputs], b [R, outputs]

The update does little arithmetic on much data, and XLA takes several passes over it: for the
input's mask, for each of two narrow products, and five more products for the gradients. Here a
program of the grid holds 128 tokens and all of both factors; input, result and their gradients pass
once. The masks are those of `dropout.drop`, so the update is that of `adapters.Update`, rounding
apart.

Arrays with a heads axis have their tokens last, `[B, N * H, T]`, as the kernel of attention takes
and gives them; others are `[B, T, D]`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax import axes, dropout, remat, update_program
from prompteol_jax.stacks import Part, alone, kernel_call
from prompteol_jax.update_program import CHUNK, TOKENS, Shape

FORWARD: Final = "low_rank_update_forward"
BACKWARD: Final = "low_rank_update_backward"
_ROWS: Final = PartitionSpec("data")
_WHOLE: Final = PartitionSpec()
_PART: Final = Part(PartitionSpec(None, "data"), _WHOLE)
_MEMORY: Final = 64 * 2**20  # of the core's own, at most: what a kernel takes, XLA cannot use


def applies(x: jax.Array, a: jax.Array, b: jax.Array) -> bool:
    """Say whether the kernel takes these operands: whole tiles, and no axis cut but the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    inputs, outputs = math.prod(a.shape[1:]), math.prod(b.shape[:-1])
    whole = x.shape[1] % TOKENS == inputs % TOKENS == outputs % TOKENS == 0
    whole &= len(x) % axes.data_parts() == 0
    fits = _memory(inputs, outputs, len(a), x.dtype.itemsize) <= _MEMORY
    return whole and fits and (mesh.empty or mesh.shape["model"] == 1)


def _memory(inputs: int, outputs: int, R: int, width: int) -> int:
    """Bytes that the backward kernel holds: blocks of tokens twice, factors, working space."""
    tokens = (2 * inputs + outputs) * TOKENS * width
    factors = (inputs + outputs) * R * (width + 4)
    return 2 * tokens + factors + 8 * CHUNK * TOKENS * 4


def update(
    x: Float[Array, "B T ..."],
    keys: dropout.Keys | None,
    a: Float[Array, "R ..."],
    b: Float[Array, "... R"],
    *,
    rate: float,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B T ..."]:
    """The scaled update of every token in `x.dtype`, dropout on its input where there are keys.

    On a mesh every device runs the kernel over its own rows; gradients of the factors are summed.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    B, T = x.shape[:2]
    x_last, y_last = x.ndim > 3, b.ndim > 2
    rate = 0.0 if keys is None else rate
    R, inputs, outputs = len(a), math.prod(a.shape[1:]), math.prod(b.shape[:-1])
    cuts = a.shape[1] % axes.data_parts() == 0, b.shape[0] % axes.data_parts() == 0
    shape = Shape(inputs, outputs, R, x_last, y_last, rate, scale, *cuts, interpret)

    def in_rows(x: jax.Array) -> jax.Array:
        return x.transpose(0, 2, 3, 1).reshape(B, inputs, T) if x_last else x

    kept = remat.kept_in(x)
    kept = kept and kept.each(in_rows)
    words = jnp.zeros((B, 2, T), jnp.uint32) if keys is None else jnp.stack(keys, axis=1)
    y = _update(shape, in_rows(x), kept, words, a.reshape(R, inputs), b.reshape(outputs, R).T)
    return y.reshape(B, *b.shape[:-1], T).transpose(0, 3, 1, 2) if y_last else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _update(shape: Shape, x: Any, kept: Part | None, words: Any, a: Any, b: Any) -> jax.Array:
    call = functools.partial(_call_forward, shape)
    run = axes.on_every_device(call, (_PART, _ROWS, _WHOLE, _WHOLE), _ROWS)
    return run(kept or alone(x), words, a, b)


def _update_forward(
    shape: Shape, x: Any, kept: Part | None, *operands: jax.Array
) -> tuple[jax.Array, tuple]:
    return _update(shape, x, kept, *operands), (kept or alone(x), *operands)


def _update_backward(shape: Shape, operands: tuple, dy: jax.Array) -> tuple:
    x, words, a, b = operands

    def call(*operands: Any) -> tuple:
        dx, da, db = _call_backward(shape, *operands)
        return dx, _summed(da, shape.a_cut), _summed(db, shape.b_cut)

    parts = [PartitionSpec(None, "data" if cut else None) for cut in (shape.a_cut, shape.b_cut)]
    places = (_PART, _ROWS, _ROWS, _WHOLE, _WHOLE)
    dx, da, db = axes.on_every_device(call, places, (_ROWS, *parts))(x, dy, words, a, b)
    return dx, None, None, da.astype(a.dtype), db.astype(b.dtype)


_update.defvjp(_update_forward, _update_backward)


def _summed(gradient: jax.Array, cut: bool) -> jax.Array:
    """The sum over all devices, or the part of it that belongs to this one."""
    if axes.data_parts() == 1:
        return gradient
    if cut:
        return jax.lax.psum_scatter(gradient, "data", scatter_dimension=1, tiled=True)
    return jax.lax.psum(gradient, "data")


def _call_forward(shape: Shape, x: Part, words: Any, a: Any, b: Any) -> jax.Array:
    B, T = words.shape[::2]
    dtype = x.stack.dtype
    x_spec, y_spec, word_spec, a_spec, b_spec = _specs(shape)
    return kernel_call(
        functools.partial(update_program.forward, shape),
        [x],
        [words, a.astype(dtype), b.astype(dtype)],
        out_shape=jax.ShapeDtypeStruct(_dims(B, T, shape.outputs, shape.y_last), dtype),
        in_specs=[x_spec, word_spec, a_spec, b_spec],
        out_specs=y_spec,
        **_call(shape, B, T, dtype.itemsize, FORWARD),
    )


def _call_backward(shape: Shape, x: Part, dy: Any, words: Any, a: Any, b: Any) -> tuple:
    """The gradients of one device's rows; those of the factors are float32."""
    B, T = words.shape[::2]
    dtype = x.stack.dtype
    x_spec, y_spec, word_spec, a_spec, b_spec = _specs(shape)
    wide = [jax.ShapeDtypeStruct(factor.shape, jnp.float32) for factor in (a, b)]
    return kernel_call(
        functools.partial(update_program.backward, shape),
        [x],
        [dy, words, a.astype(dtype), b.astype(dtype)],
        out_shape=(jax.ShapeDtypeStruct(x.stack.shape[1:], dtype), *wide),
        in_specs=[x_spec, y_spec, word_spec, a_spec, b_spec],
        out_specs=(x_spec, a_spec, b_spec),
        **_call(shape, B, T, dtype.itemsize, BACKWARD),
    )


def _dims(B: int, T: int, features: int, last: bool) -> tuple[int, int, int]:
    return (B, features, T) if last else (B, T, features)


def _call(shape: Shape, B: int, T: int, width: int, name: str) -> dict[str, Any]:
    """What both kernels are called with; sums over tokens want programs one after another.

    What a call costs tells XLA which of its arrays to keep in the core's memory.
    """
    backward = name == BACKWARD
    order = "arbitrary" if backward else "parallel"
    inputs, outputs = shape.inputs, shape.outputs
    return dict(
        grid=(B, T // TOKENS),
        name=name,
        interpret=shape.interpret,
        cost_estimate=pl.CostEstimate(
            flops=update_program.flops(B * T, shape.R, inputs, outputs, backward=backward),
            bytes_accessed=B * T * width * ((1 + backward) * inputs + outputs),
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(order, order),
            vmem_limit_bytes=_memory(inputs, outputs, shape.R, width),
        ),
    )


def _specs(shape: Shape) -> list[pl.BlockSpec]:
    """Blocks of x, y, the words of the keys, and both factors."""

    def tokens(features: int, last: bool) -> pl.BlockSpec:
        if last:
            return pl.BlockSpec((1, features, TOKENS), lambda b, t: (b, 0, t))
        return pl.BlockSpec((1, TOKENS, features), lambda b, t: (b, t, 0))

    def factor(features: int) -> pl.BlockSpec:
        whole = shape.R, features
        return pl.BlockSpec(whole, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))

    return [
        tokens(shape.inputs, shape.x_last),
        tokens(shape.outputs, shape.y_last),
        pl.BlockSpec((1, 2, TOKENS), lambda b, t: (b, 0, t)),
        factor(shape.inputs),
        factor(shape.outputs),
    ]
