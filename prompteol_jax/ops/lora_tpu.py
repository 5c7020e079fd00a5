"""Low-rank updates of one input, packed rows, as one TPU kernel, forward and one more backward.

An update does little arithmetic on much data, and XLA takes several passes over it: for the input's
mask, for each of two narrow products, and five more products for the gradients. Here a program of
the grid holds 128 tokens and all of the factors; input, results and their gradients pass once, the
input of queries, keys and values once for the three of them. The masks are those of `dropout.drop`,
so an update is that of `lora.update`, except for rounding.

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

from prompteol_jax.mesh import axis_size, on_each_device
from prompteol_jax.ops import dropout, layer_slice
from prompteol_jax.ops.einsum import barrier
from prompteol_jax.ops.kernel import kernel_call, matrix_product
from prompteol_jax.ops.layer_slice import LayerSlice, unstacked
from prompteol_jax.ops.lora import Factors, LowRank
from prompteol_jax.ops.scan import NONE, Saved, Tape

FORWARD: Final = "low_rank_update_forward"
BACKWARD: Final = "low_rank_update_backward"
TOKENS: Final = 128  # of a program
CHUNK: Final = 1024  # features that a program works on at a time, at most
_HEADS: Final = "IJ"  # axes of joined heads, whose arrays have their tokens last
_ROWS: Final = PartitionSpec("data")
_REPLICATED: Final = PartitionSpec()
_WIDE: Final = 40 * 2**20  # bytes of a result
_MEMORY: Final = 64 * 2**20  # of VMEM, at most: what a kernel takes, XLA cannot use


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        outputs: of every update.
        x_last, y_last: tokens are the last axis of the input, and of the results.
        a_sharded, b_sharded: the factors' gradients are sharded along data like the factors.
    """

    inputs: int
    outputs: tuple[int, ...]
    R: int
    x_last: bool
    y_last: bool
    rate: float
    scale: float
    a_sharded: bool
    b_sharded: tuple[bool, ...]
    interpret: bool


class Operands(NamedTuple):
    """What the kernels read, and is differentiated: one input, and the factors of every update."""

    x: Any
    a: tuple
    b: tuple


def supports(
    forms: Sequence[LowRank],
    x: Saved,
    keys: Sequence[dropout.Keys | None],
    factors: Sequence[Factors],
    tape: Tape,
) -> str | None:
    """Return why the kernel cannot run: it takes whole tiles, and no axis sharded but the rows."""
    rows, tokens = x.value.shape[:2]
    inputs, outputs = _widths(factors)
    if any(n % TOKENS for n in (tokens, inputs, *outputs)):
        return f"not supported: {tokens} tokens, {inputs} to {outputs} features, not all of 128s"
    if rows % axis_size("data"):
        return f"{rows} rows do not divide over {axis_size('data')} devices"
    if axis_size("model") > 1:
        return "not supported: a model axis"
    needed = _memory(inputs, outputs, len(factors[0].a.value), x.value.dtype.itemsize)
    return f"needs {needed} bytes of VMEM, above {_MEMORY}" if needed > _MEMORY else None


def _widths(factors: Sequence[Factors]) -> tuple[int, tuple[int, ...]]:
    return factors[0].a.value.shape[1], tuple(f.b.value.shape[1] for f in factors)


def _memory(inputs: int, outputs: tuple[int, ...], R: int, width: int) -> int:
    """Return bytes that the backward kernel holds: blocks of tokens twice, factors, masks, more."""
    tokens = (2 * inputs + sum(outputs)) * TOKENS * width
    factors = (len(outputs) * inputs + sum(outputs)) * R * (width + 4)
    masks = len(outputs) * inputs * TOKENS * 4  # used twice, made once
    return 2 * tokens + factors + masks + 6 * CHUNK * TOKENS * 4


def updates(
    forms: Sequence[LowRank],
    x: Saved,
    keys: Sequence[dropout.Keys | None],
    factors: Sequence[Factors],
    tape: Tape = NONE,
    *,
    interpret: bool = False,
) -> list[jax.Array]:
    """Return the scaled updates of every token in x's dtype, dropout where all have keys.

    On a mesh every device runs the kernel over its own rows; gradients of the factors are summed.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    (B, T), dtype = x.value.shape[:2], x.value.dtype
    dropped = all(k is not None for k in keys)
    shape = _shape(forms[0], factors, dropped=dropped, interpret=interpret)

    def as_in_kernel(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2) if shape.x_last else x

    words = [word for k in keys for word in (k or [jnp.zeros((B, T), jnp.uint32)] * 2)]
    values = Operands(
        as_in_kernel(x.value),
        tuple(f.a.value for f in factors),
        tuple(f.b.value for f in factors),
    )
    slices = Operands(
        x.slice and x.slice.map(as_in_kernel),
        tuple(_in_dtype(f.a.slice, dtype) for f in factors),
        tuple(_in_dtype(f.b.slice, dtype) for f in factors),
    )
    ys = _updates(shape, values, slices, jnp.stack(words, axis=1))
    ys = [y.swapaxes(1, 2) if shape.y_last else y for y in ys]
    return [barrier(f.in_heads(y)) for f, y in zip(forms, ys, strict=True)]


def _shape(form: LowRank, factors: Sequence[Factors], *, dropped: bool, interpret: bool) -> Shape:
    inputs, outputs = _widths(factors)
    shards = axis_size("data")
    return Shape(
        inputs,
        outputs,
        R=len(factors[0].a.value),
        x_last=form.a_dims[1:] in _HEADS,
        y_last=form.b_dims[1:] in _HEADS,
        rate=form.rate if dropped else 0.0,
        scale=form.scale,
        a_sharded=inputs % shards == 0,
        b_sharded=tuple(n % shards == 0 for n in outputs),
        interpret=interpret,
    )


def _in_dtype(where: LayerSlice | None, dtype: Any) -> LayerSlice | None:
    """Return a factor's slice if its stack has the kernel's dtype."""
    return where if where and where.stack.dtype == dtype else None


@lambda function: jax.custom_vjp(function, nondiff_argnums=(0,))
def _updates(shape: Shape, values: Operands, slices: Operands, words: jax.Array) -> list[jax.Array]:
    call = functools.partial(_call_forward, shape)
    run = on_each_device(call, (_operand_specs(shape), _ROWS), _ROWS)
    return run(_in_stacks(values, slices), words)


def _operand_specs(shape: Shape) -> Operands:
    factors = (layer_slice.spec(_REPLICATED),) * len(shape.outputs)
    return Operands(layer_slice.spec(_ROWS), factors, factors)


def _in_stacks(values: Operands, slices: Operands) -> Operands:
    """Return what the kernels read: the input, and all factors in its dtype."""

    def factors(own: tuple, where: tuple) -> tuple:
        return tuple(
            s or unstacked(f.astype(values.x.dtype)) for f, s in zip(own, where, strict=True)
        )

    return Operands(
        slices.x or unstacked(values.x), factors(values.a, slices.a), factors(values.b, slices.b)
    )


def _updates_forward(
    shape: Shape, values: Operands, slices: Operands, words: jax.Array
) -> tuple[list[jax.Array], tuple]:
    like = jax.tree.map(lambda f: jnp.empty(0, f.dtype), (values.a, values.b))
    return _updates(shape, values, slices, words), (_in_stacks(values, slices), words, like)


def _updates_backward(shape: Shape, residuals: tuple, dy: list[jax.Array]) -> tuple:
    operands, words, like = residuals
    n = len(dy)
    sharded = (shape.a_sharded,) * n, shape.b_sharded

    def call(*arguments: Any) -> tuple:
        dx, *dab = _call_backward(shape, *arguments)
        return dx, jax.tree.map(_summed, (tuple(dab[:n]), tuple(dab[n:])), sharded)

    def spec(is_sharded: bool) -> PartitionSpec:
        return PartitionSpec(None, "data" if is_sharded else None)

    inputs = _operand_specs(shape), _ROWS, _ROWS
    run = on_each_device(call, inputs, (_ROWS, jax.tree.map(spec, sharded)))
    dx, dab = run(operands, dy, words)
    da, db = jax.tree.map(lambda g, f: g.astype(f.dtype), dab, like)
    return Operands(dx, da, db), None, None


_updates.defvjp(_updates_forward, _updates_backward)


def _summed(gradient: jax.Array, is_sharded: bool) -> jax.Array:
    """Return the sum over all devices, or this device's shard of it."""
    if axis_size("data") == 1:
        return gradient
    if is_sharded:
        return jax.lax.psum_scatter(gradient, "data", scatter_dimension=1, tiled=True)
    return jax.lax.psum(gradient, "data")


def _call_forward(shape: Shape, operands: Operands, words: jax.Array) -> list[jax.Array]:
    x = operands.x
    B, T, dtype = len(words), words.shape[2], x.stack.dtype
    x_spec, y_specs, factor_specs, word_spec = _specs(shape)
    ys = kernel_call(
        functools.partial(_forward, shape),
        [x, *operands.a, *operands.b],
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
    """Return the type of a forward result, a wide one in HBM.

    The matmul that it is added to needs the VMEM: without it that works on smaller blocks, for half
    as long again.
    """
    wide = math.prod(dims) * dtype.itemsize > _WIDE and not shape.interpret
    return (pltpu.HBM if wide else jax.ShapeDtypeStruct)(dims, dtype)


def _call_backward(
    shape: Shape, operands: Operands, dy: list[jax.Array], words: jax.Array
) -> list[jax.Array]:
    """Return the gradients of one device's rows; those of the factors are float32."""
    x, ab = operands.x, [*operands.a, *operands.b]
    B, T, dtype = len(words), words.shape[2], x.stack.dtype
    x_spec, y_specs, factor_specs, word_spec = _specs(shape)
    gradients = kernel_call(
        functools.partial(_backward, shape),
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
    """Return the options of both kernels; sums over tokens need programs one after another.

    What a call costs tells XLA which of its arrays to keep in VMEM.
    """
    backward = name == BACKWARD
    order = "arbitrary" if backward else "parallel"
    inputs, outputs = shape.inputs, shape.outputs
    return dict(
        grid=(B, T // TOKENS),
        name=name,
        interpret=shape.interpret,
        cost_estimate=pl.CostEstimate(
            flops=flops(B * T, shape.R, inputs, outputs, backward=backward),
            bytes_accessed=B * T * width * ((1 + backward) * inputs + sum(outputs)),
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(order, order),
            vmem_limit_bytes=_memory(inputs, outputs, shape.R, width),
        ),
    )


def _specs(shape: Shape) -> tuple:
    """Return blocks of x, the ys, the factors a and b, and the words of the keys."""

    def tokens(features: int, last: bool) -> pl.BlockSpec:
        if last:
            return pl.BlockSpec((1, features, TOKENS), lambda b, t: (b, 0, t))
        return pl.BlockSpec((1, TOKENS, features), lambda b, t: (b, t, 0))

    def factor(features: int) -> pl.BlockSpec:
        block = shape.R, features
        return pl.BlockSpec(block, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))

    count = len(shape.outputs)
    return (
        tokens(shape.inputs, shape.x_last),
        [tokens(n, shape.y_last) for n in shape.outputs],
        [factor(n) for n in (*[shape.inputs] * count, *shape.outputs)],
        pl.BlockSpec((1, 2 * count, TOKENS), lambda b, t: (b, 0, t)),
    )


# What a program does with its block of tokens. Features are worked on in chunks, so that few are in
# registers at a time. A block whose tokens come last is a matrix of features by tokens; the
# product with `a` then has its tokens last too, which spares the kernel transpositions.


class _Block:
    """The features of a block of tokens, some at a time; its token and feature axes."""

    def __init__(self, ref: Any, features: int, last: bool):
        self.ref, self.last = ref, last
        self.tokens, self.features = (1, 0) if last else (0, 1)
        size = max(n for n in range(128, CHUNK + 1, 128) if features % n == 0)
        self.chunks = [pl.ds(at, size) for at in range(0, features, size)]

    def at(self, chunk: Any) -> tuple:
        """Return the index of a chunk's features in the block."""
        return (0, chunk, slice(None)) if self.last else (0, slice(None), chunk)


def _down(h_last: bool, block: _Block, part: Any, factor: Any) -> Any:
    """Contract features: `part @ factor.T`, shape [tokens, R]; transposed where h_last."""
    if h_last:
        return matrix_product(factor, part, 1, block.features)
    return matrix_product(part, factor, block.features, 1)


def _up(h_last: bool, block: _Block, h: Any, factor: Any) -> Any:
    """Features of a block from `h`, tokens by R."""
    if block.last:
        return matrix_product(factor, h, 0, 0)  # only where h has its tokens last, too
    return matrix_product(h, factor, 0 if h_last else 1, 0)


def _over_tokens(h_last: bool, block: _Block, h: Any, part: Any) -> Any:
    """`[R, features]`, summed over tokens."""
    return matrix_product(h, part, 1 if h_last else 0, block.tokens)


def _dropper(shape: Shape, block: _Block, words: Any) -> Any:
    """Return a function that drops out a chunk, by the two words of the keys."""
    low, high = words[0:1], words[1:2]
    if not block.last:  # keys of tokens, now one below the other
        low, high = (jnp.broadcast_to(w, (8, TOKENS)).T[:, :1] for w in (low, high))

    def drop(part: Any, chunk: Any) -> Any:
        if shape.rate == 0.0:
            return part
        feature = jax.lax.broadcasted_iota(jnp.uint32, part.shape, block.features)
        kept = dropout.is_kept(
            dropout.Keys(low, high), feature + jnp.uint32(chunk.start), shape.rate
        )
        return jnp.where(kept, part * (1.0 / (1.0 - shape.rate)), 0).astype(part.dtype)

    return drop


class _Io(NamedTuple):
    """The references of a program, by what they hold; lists have one of every update."""

    x: Any
    a: Sequence[Any]
    b: Sequence[Any]
    y: Sequence[Any]  # forward: results; backward: their gradients
    words: Any
    dx: Any = None
    da: Sequence[Any] = ()
    db: Sequence[Any] = ()

    @classmethod
    def of_forward(cls, n: int, refs: Sequence[Any]) -> _Io:
        """Bind the references of the forward kernel with n updates."""
        x, *rest = refs
        return cls(x, rest[:n], rest[n : 2 * n], rest[2 * n + 1 :], rest[2 * n])

    @classmethod
    def of_backward(cls, n: int, refs: Sequence[Any]) -> _Io:
        """Bind the references of the backward kernel with n updates."""
        x, *rest = refs
        a, b, dy = (rest[at * n : (at + 1) * n] for at in range(3))
        words, dx, *dab = rest[3 * n :]
        return cls(x, a, b, dy, words, dx, dab[:n], dab[n:])


def _forward(shape: Shape, *refs: Any) -> None:
    """Compute the updates of a block of tokens."""
    io = _Io.of_forward(len(shape.outputs), refs)
    x, last = _Block(io.x, shape.inputs, shape.x_last), shape.x_last or shape.y_last
    for i, (a_ref, b_ref, y_ref) in enumerate(zip(io.a, io.b, io.y, strict=True)):
        y = _Block(y_ref, shape.outputs[i], shape.y_last)
        drop = _dropper(shape, x, io.words[0, 2 * i : 2 * i + 2])
        h: Any = sum(_down(last, x, drop(io.x[x.at(c)], c), a_ref[:, c]) for c in x.chunks)
        h = h.astype(io.x.dtype)
        for c in y.chunks:
            y_ref[y.at(c)] = (shape.scale * _up(last, y, h, b_ref[:, c])).astype(y_ref.dtype)


def _backward(shape: Shape, *refs: Any) -> None:
    """Compute the gradients of a block of tokens; the factors' add up from block to block."""
    io = _Io.of_backward(len(shape.outputs), refs)

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _begin() -> None:
        for ref in (*io.da, *io.db):
            ref[...] = jnp.zeros_like(ref)

    x, last = _Block(io.x, shape.inputs, shape.x_last), shape.x_last or shape.y_last
    inner = []  # of every update: its dropout, and the gradient of the product with a
    for i, (dy_ref, a_ref, b_ref, db_ref) in enumerate(zip(io.y, io.a, io.b, io.db, strict=True)):
        y = _Block(dy_ref, shape.outputs[i], shape.y_last)
        drop = _dropper(shape, x, io.words[0, 2 * i : 2 * i + 2])
        h: Any = sum(_down(last, x, drop(io.x[x.at(c)], c), a_ref[:, c]) for c in x.chunks)
        dh: Any = sum(_down(last, y, dy_ref[y.at(c)], b_ref[:, c]) for c in y.chunks)
        h, dh = h.astype(io.x.dtype), (shape.scale * dh).astype(io.x.dtype)
        for c in y.chunks:
            db_ref[:, c] += shape.scale * _over_tokens(last, y, h, dy_ref[y.at(c)])
        inner.append((drop, dh))
    for c in x.chunks:
        part: Any = io.x[x.at(c)]
        dx: Any = 0.0
        for (drop, dh), a_ref, da_ref in zip(inner, io.a, io.da, strict=True):
            da_ref[:, c] += _over_tokens(last, x, dh, drop(part, c))
            dx += drop(_up(last, x, dh, a_ref[:, c]), c)
        io.dx[x.at(c)] = dx.astype(io.dx.dtype)


def flops(tokens: int, R: int, inputs: int, outputs: tuple[int, ...], *, backward: bool) -> int:
    """Return FLOPs of a call's products, of a rank of whole tiles.

    Forward: down and up; backward: both again but for the last, and a gradient of each operand.
    """
    narrow, wide = (3, 2) if backward else (1, 1)
    products = sum(narrow * inputs + wide * n for n in outputs)
    return 2 * tokens * -(-R // 128) * 128 * products
