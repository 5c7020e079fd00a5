"""Low-rank updates of one input, packed rows, as one TPU kernel, forward and one more backward.

    y = scale * drop(x) a b        x [tokens, inputs], a [R, inputs], b [R, outputs]

An update does little arithmetic on much data, and XLA takes several passes over it: for the
input's mask, for each of two narrow products, and five more products for the gradients. Here a
program of the grid holds 128 tokens and all of the factors; input, results and their gradients pass
once, the input of queries, keys and values once for the three of them. The masks are those of
`dropout.drop`, so an update is that of `adapters.Update`, rounding apart.

Arrays of heads have their tokens last, `[B, N * H, T]`, as the kernel of attention takes and gives
them; others are `[B, T, D]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import axis_size, on_each_device
from prompteol_jax.ops import dropout, layer_slice, lora_program, scan
from prompteol_jax.ops.layer_slice import Part, alone, kernel_call
from prompteol_jax.ops.lora_program import CHUNK, TOKENS, Shape

FORWARD: Final = "low_rank_update_forward"
BACKWARD: Final = "low_rank_update_backward"
_ROWS: Final = PartitionSpec("data")
_WHOLE: Final = PartitionSpec()
_PART: Final = layer_slice.place(_ROWS)
_WIDE: Final = 40 * 2**20  # bytes of a result
_MEMORY: Final = 64 * 2**20  # of the core's own, at most: what a kernel takes, XLA cannot use


class Factors(NamedTuple):
    """The two factors of an update."""

    a: Float[Array, "R inputs"]
    b: Float[Array, "R outputs"]


class Last(NamedTuple):
    """Whether tokens are the last axis of what a kernel takes as x, and of what it gives as y."""

    x: bool
    y: bool


def applies(x: jax.Array, factors: Sequence[Factors]) -> bool:
    """Say whether the kernel takes these operands: whole tiles, and no axis cut but the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    inputs, outputs = _widths(factors)
    whole = all(n % TOKENS == 0 for n in (x.shape[1], inputs, *outputs))
    whole &= len(x) % axis_size("data") == 0
    fits = _memory(inputs, outputs, len(factors[0].a), x.dtype.itemsize) <= _MEMORY
    return whole and fits and (mesh.empty or mesh.shape["model"] == 1)


def _widths(factors: Sequence[Factors]) -> tuple[int, tuple[int, ...]]:
    return factors[0].a.shape[1], tuple(f.b.shape[1] for f in factors)


def _memory(inputs: int, outputs: tuple[int, ...], R: int, width: int) -> int:
    """Bytes that the backward kernel holds: blocks of tokens twice, factors, masks, and some."""
    tokens = (2 * inputs + sum(outputs)) * TOKENS * width
    factors = (len(outputs) * inputs + sum(outputs)) * R * (width + 4)
    masks = len(outputs) * inputs * TOKENS * 4  # used twice, made once
    return 2 * tokens + factors + masks + 6 * CHUNK * TOKENS * 4


def updates(
    x: Float[Array, "B T inputs"],
    keys: Sequence[dropout.Keys | None],
    factors: Sequence[Factors],
    last: Last,
    *,
    rate: float,
    scale: float,
    interpret: bool = False,
) -> list[Float[Array, "B T outputs"]]:
    """The scaled updates of every token in `x.dtype`, dropout on their input where there are keys.

    On a mesh every device runs the kernel over its own rows; gradients of the factors are summed.

    Args:
        keys: of every update; all of them, or none.
        interpret: run the kernel's program step by step, on any device.
    """
    B, T = x.shape[:2]
    dropped = all(k is not None for k in keys)
    inputs, outputs = _widths(factors)
    parts, R = axis_size("data"), len(factors[0].a)
    cuts = inputs % parts == 0, tuple(n % parts == 0 for n in outputs)
    shape = Shape(inputs, outputs, R, *last, rate if dropped else 0.0, scale, *cuts, interpret)

    def in_rows(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2) if last.x else x

    kept = scan.kept_in(x)
    words = [word for k in keys for word in (k or [jnp.zeros((B, T), jnp.uint32)] * 2)]
    ab = [f.a for f in factors] + [f.b for f in factors]
    places = kept and kept.each(in_rows), [_kept_factor(f, x.dtype) for f in ab]
    ys = _updates(shape, in_rows(x), ab, places, jnp.stack(words, axis=1))
    return [y.swapaxes(1, 2) if last.y else y for y in ys]


def _kept_factor(factor: jax.Array, dtype: Any) -> Part | None:
    """Where a factor lies among those of all layers, if it lies there in the kernel's dtype."""
    kept = scan.kept_in(factor)
    return kept if kept and kept.stack.dtype == dtype else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _updates(
    shape: Shape, x: jax.Array, ab: list[jax.Array], places: tuple, words: jax.Array
) -> list[jax.Array]:
    call = functools.partial(_call_forward, shape)
    run = on_each_device(call, (_PART, _WHOLE, _ROWS), _ROWS)
    return run(*_parts(x, ab, places), words)


def _parts(x: jax.Array, ab: list[jax.Array], places: tuple) -> tuple[Part, list[Part]]:
    """What the kernels read: the input, and the factors a of all updates, then b, in its dtype."""
    kept, kept_ab = places
    factors = zip(ab, kept_ab, strict=True)
    return kept or alone(x), [part or alone(f.astype(x.dtype)) for f, part in factors]


def _updates_forward(
    shape: Shape, x: jax.Array, ab: list[jax.Array], places: tuple, words: jax.Array
) -> tuple[list[jax.Array], tuple]:
    like = [jnp.empty(0, f.dtype) for f in ab]
    return _updates(shape, x, ab, places, words), (*_parts(x, ab, places), words, like)


def _updates_backward(shape: Shape, operands: tuple, dy: list[jax.Array]) -> tuple:
    x, ab, words, like = operands
    cuts = [shape.a_cut] * len(dy) + list(shape.b_cuts)

    def call(*operands: Any) -> tuple:
        dx, *dab = _call_backward(shape, *operands)
        return dx, [_summed(*of_one) for of_one in zip(dab, cuts, strict=True)]

    outs = _ROWS, [PartitionSpec(None, "data" if cut else None) for cut in cuts]
    run = on_each_device(call, (_PART, _ROWS, _WHOLE, _ROWS), outs)
    dx, dab = run(x, dy, ab, words)
    return dx, jax.tree.map(lambda g, f: g.astype(f.dtype), dab, like), None, None


_updates.defvjp(_updates_forward, _updates_backward)


def _summed(gradient: jax.Array, cut: bool) -> jax.Array:
    """The sum over all devices, or the part of it that belongs to this one."""
    if axis_size("data") == 1:
        return gradient
    if cut:
        return jax.lax.psum_scatter(gradient, "data", scatter_dimension=1, tiled=True)
    return jax.lax.psum(gradient, "data")


def _call_forward(shape: Shape, x: Part, ab: list[Part], words: jax.Array) -> list[jax.Array]:
    B, T, dtype = len(words), words.shape[2], x.stack.dtype
    x_spec, y_specs, factor_specs, word_spec = _specs(shape)
    ys = kernel_call(
        functools.partial(lora_program.forward, shape),
        [x, *ab],
        [words],
        out_shape=[
            _result((B, n, T) if shape.y_last else (B, T, n), dtype, shape) for n in shape.outputs
        ],
        in_specs=[x_spec, *factor_specs, word_spec],
        out_specs=y_specs,
        **_call(shape, B, T, dtype.itemsize, FORWARD),
    )
    return list(ys)


def _result(dims: tuple[int, ...], dtype: Any, shape: Shape) -> Any:
    """A result of the forward kernel: a wide one to HBM, since what it is added to wants the room.

    XLA would keep it in the core's memory for the product that it is added to, and that product
    then works on smaller blocks, for half as long again.
    """
    wide = math.prod(dims) * dtype.itemsize > _WIDE and not shape.interpret
    return (pltpu.HBM if wide else jax.ShapeDtypeStruct)(dims, dtype)


def _call_backward(
    shape: Shape, x: Part, dy: list[jax.Array], ab: list[Part], words: jax.Array
) -> list[jax.Array]:
    """The gradients of one device's rows; those of the factors are float32."""
    B, T, dtype = len(words), words.shape[2], x.stack.dtype
    x_spec, y_specs, factor_specs, word_spec = _specs(shape)
    gradients = kernel_call(
        functools.partial(lora_program.backward, shape),
        [x, *ab],
        [*dy, words],
        out_shape=[
            jax.ShapeDtypeStruct(x.stack.shape[1:], dtype),
            *(jax.ShapeDtypeStruct(f.stack.shape[1:], jnp.float32) for f in ab),
        ],
        in_specs=[x_spec, *factor_specs, *y_specs, word_spec],
        out_specs=[x_spec, *factor_specs],
        **_call(shape, B, T, dtype.itemsize, BACKWARD),
    )
    return list(gradients)


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
            flops=lora_program.flops(B * T, shape.R, inputs, outputs, backward=backward),
            bytes_accessed=B * T * width * ((1 + backward) * inputs + sum(outputs)),
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(order, order),
            vmem_limit_bytes=_memory(inputs, outputs, shape.R, width),
        ),
    )


def _specs(shape: Shape) -> tuple:
    """Blocks of x, the ys, the factors a and b, and the words of the keys."""

    def tokens(features: int, last: bool) -> pl.BlockSpec:
        if last:
            return pl.BlockSpec((1, features, TOKENS), lambda b, t: (b, 0, t))
        return pl.BlockSpec((1, TOKENS, features), lambda b, t: (b, t, 0))

    def factor(features: int) -> pl.BlockSpec:
        whole = shape.R, features
        return pl.BlockSpec(whole, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))

    count = len(shape.outputs)
    return (
        tokens(shape.inputs, shape.x_last),
        [tokens(n, shape.y_last) for n in shape.outputs],
        [factor(n) for n in (*[shape.inputs] * count, *shape.outputs)],
        pl.BlockSpec((1, 2 * count, TOKENS), lambda b, t: (b, 0, t)),
    )
