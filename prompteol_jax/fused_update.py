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
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax import dropout

FORWARD: Final = "low_rank_update_forward"
BACKWARD: Final = "low_rank_update_backward"
_TOKENS: Final = 128  # of a program
_CHUNK: Final = 1024  # features that a program works on at a time, at most
_MEMORY: Final = 64 * 2**20  # of the core's own, at most: what a kernel takes, XLA cannot use


class Shape(NamedTuple):
    """What a kernel is compiled for; `last`: the array's tokens come last.

    Attributes:
        a_cut, b_cut: the factor's gradient is cut along data as `axes.spread` cuts the factor.
    """

    inputs: int
    outputs: int
    R: int
    x_last: bool
    y_last: bool
    rate: float
    scale: float
    a_cut: bool
    b_cut: bool
    interpret: bool


def applies(x: jax.Array, a: jax.Array, b: jax.Array) -> bool:
    """Say whether the kernel takes these operands: whole tiles, and no axis cut but the rows."""
    mesh = jax.sharding.get_abstract_mesh()
    inputs, outputs = math.prod(a.shape[1:]), math.prod(b.shape[:-1])
    whole = x.shape[1] % _TOKENS == inputs % _TOKENS == outputs % _TOKENS == 0
    fits = _memory(inputs, outputs, len(a), x.dtype.itemsize) <= _MEMORY
    return whole and fits and (mesh.empty or mesh.shape["model"] == 1)


def _memory(inputs: int, outputs: int, R: int, width: int) -> int:
    """Bytes that the backward kernel holds: blocks of tokens twice, factors, working space."""
    tokens = (2 * inputs + outputs) * _TOKENS * width
    factors = (inputs + outputs) * R * (width + 4)
    return 2 * tokens + factors + 6 * _CHUNK * _TOKENS * 4


def update(
    x: Float[Array, "B T *inputs"],
    keys: dropout.Keys | None,
    a: Float[Array, "R *inputs"],
    b: Float[Array, "*outputs R"],
    *,
    rate: float,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B T *outputs"]:
    """The scaled update of every token in `x.dtype`, dropout on its input where there are keys.

    On a mesh every device runs the kernel over its own rows; gradients of the factors are summed.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    B, T = x.shape[:2]
    x_last, y_last = x.ndim > 3, b.ndim > 2
    rate = 0.0 if keys is None else rate
    R, inputs, outputs = len(a), math.prod(a.shape[1:]), math.prod(b.shape[:-1])
    mesh = jax.sharding.get_abstract_mesh()
    data = 1 if mesh.empty else mesh.shape["data"]
    cuts = a.shape[1] % data == 0, b.shape[0] % data == 0
    shape = Shape(inputs, outputs, R, x_last, y_last, rate, scale, *cuts, interpret)
    rows = x.transpose(0, 2, 3, 1).reshape(B, inputs, T) if x_last else x
    words = jnp.zeros((B, 2, T), jnp.uint32) if keys is None else jnp.stack(keys, axis=1)
    y = _update(shape, rows, words, a.reshape(R, inputs), b.reshape(outputs, R).T)
    return y.reshape(B, *b.shape[:-1], T).transpose(0, 3, 1, 2) if y_last else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _update(shape: Shape, x: Any, words: Any, a: Any, b: Any) -> jax.Array:
    call = functools.partial(_call_forward, shape)
    return _over_rows(call, 2, PartitionSpec("data"))(x, words, a, b)


def _update_forward(shape: Shape, *operands: jax.Array) -> tuple[jax.Array, tuple]:
    return _update(shape, *operands), operands


def _update_backward(shape: Shape, operands: tuple, dy: jax.Array) -> tuple:
    x, words, a, b = operands
    mesh = jax.sharding.get_abstract_mesh()

    def call(*operands: jax.Array) -> tuple:
        dx, da, db = _call_backward(shape, *operands)
        if mesh.empty or mesh.size == 1:
            return dx, da, db
        return dx, _summed(da, shape.a_cut), _summed(db, shape.b_cut)

    parts = [PartitionSpec(None, "data" if cut else None) for cut in (shape.a_cut, shape.b_cut)]
    dx, da, db = _over_rows(call, 3, (PartitionSpec("data"), *parts))(x, dy, words, a, b)
    return dx, None, da.astype(a.dtype), db.astype(b.dtype)


_update.defvjp(_update_forward, _update_backward)


def _summed(gradient: jax.Array, cut: bool) -> jax.Array:
    """The sum over all devices, or the part of it that belongs to this one."""
    if cut:
        return jax.lax.psum_scatter(gradient, "data", scatter_dimension=1, tiled=True)
    return jax.lax.psum(gradient, "data")


def _over_rows(call: Any, rows: int, out_specs: Any) -> Any:
    """Run a call over every device's own rows.

    Args:
        rows: operands that are cut along data, before the two factors, which are whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return call
    places = (PartitionSpec("data"),) * rows + (PartitionSpec(),) * 2
    return jax.shard_map(call, in_specs=places, out_specs=out_specs, check_vma=False)


def _call_forward(shape: Shape, x: Any, words: Any, a: Any, b: Any) -> jax.Array:
    B, T = words.shape[::2]
    x_spec, y_spec, word_spec, a_spec, b_spec = _specs(shape)
    return pl.pallas_call(
        functools.partial(_forward, shape),
        out_shape=jax.ShapeDtypeStruct(_dims(B, T, shape.outputs, shape.y_last), x.dtype),
        in_specs=[x_spec, word_spec, a_spec, b_spec],
        out_specs=y_spec,
        **_call(shape, B, T, x.dtype.itemsize, FORWARD),
    )(x, words, a.astype(x.dtype), b.astype(x.dtype))


def _call_backward(shape: Shape, x: Any, dy: Any, words: Any, a: Any, b: Any) -> tuple:
    """The gradients of one device's rows; those of the factors are float32."""
    B, T = words.shape[::2]
    x_spec, y_spec, word_spec, a_spec, b_spec = _specs(shape)
    wide = [jax.ShapeDtypeStruct(factor.shape, jnp.float32) for factor in (a, b)]
    return pl.pallas_call(
        functools.partial(_backward, shape),
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), *wide),
        in_specs=[x_spec, y_spec, word_spec, a_spec, b_spec],
        out_specs=[x_spec, a_spec, b_spec],
        **_call(shape, B, T, x.dtype.itemsize, BACKWARD),
    )(x, dy, words, a.astype(x.dtype), b.astype(x.dtype))


def _dims(B: int, T: int, features: int, last: bool) -> tuple[int, int, int]:
    return (B, features, T) if last else (B, T, features)


def _call(shape: Shape, B: int, T: int, width: int, name: str) -> dict[str, Any]:
    """What both kernels are called with; sums over tokens want programs one after another.

    What a call costs tells XLA which of its arrays to keep in the core's memory.
    """
    backward = name == BACKWARD
    order = "arbitrary" if backward else "parallel"
    passed = (2 if backward else 1) * shape.inputs + shape.outputs
    return dict(
        grid=(B, T // _TOKENS),
        name=name,
        interpret=shape.interpret,
        cost_estimate=pl.CostEstimate(
            flops=flops(B * T, shape.R, shape.inputs, shape.outputs, backward=backward),
            bytes_accessed=B * T * width * passed,
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(order, order),
            vmem_limit_bytes=_memory(shape.inputs, shape.outputs, shape.R, width),
        ),
    )


def _specs(shape: Shape) -> list[pl.BlockSpec]:
    """Blocks of x, y, the words of the keys, and both factors."""

    def tokens(features: int, last: bool) -> pl.BlockSpec:
        if last:
            return pl.BlockSpec((1, features, _TOKENS), lambda b, t: (b, 0, t))
        return pl.BlockSpec((1, _TOKENS, features), lambda b, t: (b, t, 0))

    def factor(features: int) -> pl.BlockSpec:
        whole = shape.R, features
        return pl.BlockSpec(whole, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))

    return [
        tokens(shape.inputs, shape.x_last),
        tokens(shape.outputs, shape.y_last),
        pl.BlockSpec((1, 2, _TOKENS), lambda b, t: (b, 0, t)),
        factor(shape.inputs),
        factor(shape.outputs),
    ]


class _Block:
    """The features of a block of tokens, some at a time; its token and feature axes."""

    def __init__(self, ref: Any, features: int, last: bool):
        self.ref, self.last = ref, last
        self.tokens, self.features = (1, 0) if last else (0, 1)
        size = max(n for n in range(128, _CHUNK + 1, 128) if features % n == 0)
        self.chunks = [pl.ds(at, size) for at in range(0, features, size)]

    def at(self, chunk: Any) -> tuple:
        return (0, chunk, slice(None)) if self.last else (0, slice(None), chunk)


def _dot(one: Any, other: Any, axis: int, other_axis: int) -> Any:
    """A product of two matrices in their dtype, accumulated in float32."""
    precision = jax.lax.Precision.HIGHEST if one.dtype == jnp.float32 else None
    axes = (((axis,), (other_axis,)), ((), ()))
    return jax.lax.dot_general(
        one, other, axes, precision=precision, preferred_element_type=jnp.float32
    )


def _joined(h_last: bool, block: _Block, part: Any, factor: Any) -> Any:
    """What `part [tokens, features]` and `factor [R, features]` have in common, tokens by R."""
    if h_last:
        return _dot(factor, part, 1, block.features)
    return _dot(part, factor, block.features, 1)


def _spread(h_last: bool, block: _Block, h: Any, factor: Any) -> Any:
    """Features of a block from `h`, tokens by R."""
    if block.last:
        return _dot(factor, h, 0, 0)  # only where h has its tokens last, too
    return _dot(h, factor, 0 if h_last else 1, 0)


def _over_tokens(h_last: bool, block: _Block, h: Any, part: Any) -> Any:
    """`[R, features]`, summed over tokens."""
    return _dot(h, part, 1 if h_last else 0, block.tokens)


def _masks(shape: Shape, block: _Block, words: Any) -> Any:
    """A function from a chunk's part to the part with dropout."""
    low, high = words[0:1], words[1:2]
    if not block.last:  # keys of tokens, now one below the other
        low, high = (jnp.broadcast_to(w, (8, _TOKENS)).T[:, :1] for w in (low, high))

    def drop(part: Any, chunk: Any) -> Any:
        if shape.rate == 0.0:
            return part
        place = jax.lax.broadcasted_iota(jnp.uint32, part.shape, block.features)
        kept = dropout.is_kept(dropout.Keys(low, high), place + jnp.uint32(chunk.start), shape.rate)
        return jnp.where(kept, part * (1.0 / (1.0 - shape.rate)), 0).astype(part.dtype)

    return drop


def _forward(shape: Shape, x_ref: Any, words_ref: Any, a_ref: Any, b_ref: Any, y_ref: Any) -> None:
    x, y = _Block(x_ref, shape.inputs, shape.x_last), _Block(y_ref, shape.outputs, shape.y_last)
    last = shape.x_last or shape.y_last
    drop = _masks(shape, x, words_ref[0])
    h = sum(_joined(last, x, drop(x_ref[x.at(c)], c), a_ref[:, c]) for c in x.chunks)
    h = h.astype(x_ref.dtype)
    for c in y.chunks:
        y_ref[y.at(c)] = (shape.scale * _spread(last, y, h, b_ref[:, c])).astype(y_ref.dtype)


def _backward(shape: Shape, *refs: Any) -> None:
    x_ref, dy_ref, words_ref, a_ref, b_ref, dx_ref, da_ref, db_ref = refs

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _begin() -> None:
        da_ref[...] = jnp.zeros_like(da_ref)
        db_ref[...] = jnp.zeros_like(db_ref)

    x, y = _Block(x_ref, shape.inputs, shape.x_last), _Block(dy_ref, shape.outputs, shape.y_last)
    last = shape.x_last or shape.y_last
    drop = _masks(shape, x, words_ref[0])
    h = sum(_joined(last, x, drop(x_ref[x.at(c)], c), a_ref[:, c]) for c in x.chunks)
    dh = sum(_joined(last, y, dy_ref[y.at(c)], b_ref[:, c]) for c in y.chunks)
    h, dh = h.astype(x_ref.dtype), (shape.scale * dh).astype(x_ref.dtype)
    for c in y.chunks:
        db_ref[:, c] += shape.scale * _over_tokens(last, y, h, dy_ref[y.at(c)])
    for c in x.chunks:
        da_ref[:, c] += _over_tokens(last, x, dh, drop(x_ref[x.at(c)], c))
        dx_ref[x.at(c)] = drop(_spread(last, x, dh, a_ref[:, c]), c).astype(dx_ref.dtype)


def flops(tokens: int, R: int, inputs: int, outputs: int, *, backward: bool) -> int:
    """FLOPs of a call's products, of a rank of whole tiles.

    Forward: down and up; backward: both again but for the last, and a gradient of each operand.
    """
    products = 3 * inputs + 2 * outputs if backward else inputs + outputs
    return 2 * tokens * -(-R // 128) * 128 * products
