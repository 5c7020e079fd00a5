"""Attention of long rows as one TPU kernel: scores never leave the core.

A program of the grid holds a block of queries of the query heads that share a key/value head.
Rotated keys, and values, stay in the core's memory from block to block: causal queries need no
others. Blocks before the queries have no mask. Arrays are as XLA's products leave them, tokens
last, and rope is applied inside, as in `attention_tpu`. The result is that of `attention.attend`,
except for rounding.

A backward pass, and rows that the core cannot hold, run jax's splash attention.

Source: Dao et al. 2022 (FlashAttention), algorithm 1.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import on_each_device
from prompteol_jax.ops import causal, splash_attention_tpu
from prompteol_jax.ops.attention import HIDDEN, KeysValues, repeat_kv, repeat_prefix
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.kernel import LANES, matrix_product
from prompteol_jax.ops.rope import Rope, apply_rope_in_kernel, rope_of_rows
from prompteol_jax.ops.scan import Saved

FORWARD: Final = "long_attention_forward"
BLOCK: Final = 512  # queries, and keys, of a block
# Blocks of keys, and heads, that are computed together: the matrix units then have work while
# the vector units exponentiate.
_TOGETHER: Final = 2
_HELD: Final = 2**24  # bytes of keys and values that the core's memory has room for
_ROOM: Final = 2**24  # bytes of the rest
# What a plan knows of the kernel: cycles that a block of queries takes beyond its scores. See also
# `vector_operations`. Both are from the schedules that libtpu 0.0.42.1 makes.
BLOCK_CYCLES: Final = 700


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        N, K, H: query and key/value heads, and their width.
        C: tokens of the cached prefix.
        scale: factor of the scores.
    """

    N: int
    K: int
    H: int
    C: int
    scale: float
    rope: bool
    interpret: bool

    @property
    def heads(self) -> int:
        """Query heads that are computed together."""
        return math.gcd(self.N // self.K, _TOGETHER)


def supports(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: KeysValues | None,
) -> str | None:
    """Return why the kernel cannot run: it takes rows of one text each, in bfloat16."""
    return causal.beyond_causal(q.value, context, spec)


def attend(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: KeysValues | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attend every token to its row's tokens up to itself, and to the whole prefix.

    On a mesh every device runs the kernel over its own rows and heads.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    own = [q.value, repeat_kv(k.value), repeat_kv(v.value)]
    prefix, rope = repeat_prefix(prefix), rope_of_rows(context.rope, len(q.value))
    T, _, H = q.value.shape[1:]
    shape = Shape(0, 0, H, 0, spec.scale, rope is not None, interpret)
    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    inputs = (
        [rows] * 3,
        None if rope is None else (PartitionSpec("data"),) * 2,
        None if prefix is None else (heads, heads),
    )
    call = functools.partial(_attend if _fits(H, T, rope) else _splash, shape)
    return context.tape.save(on_each_device(call, inputs, rows)(own, rope, prefix)).value


def _fits(H: int, T: int, rope: Rope | None) -> bool:
    """Return whether the core holds a row, and the kernel takes heads of this width."""
    whole = H % LANES == 0 or H in (32, 64)
    return whole and 4 * H * T <= _HELD and (rope is None or 2 * rope[0].shape[-1] == H)


def _splash(
    shape: Shape, own: list[jax.Array], rope: Rope | None, prefix: KeysValues | None
) -> jax.Array:
    q, k, v = own
    settings: dict[str, Any] = {"scale": shape.scale, "interpret": shape.interpret}
    return splash_attention_tpu.attend((q, k, v), rope, prefix, **settings)


@lambda function: jax.custom_vjp(function, nondiff_argnums=(0,))
def _attend(
    shape: Shape, own: list[jax.Array], rope: Rope | None, prefix: KeysValues | None
) -> jax.Array:
    """Run the kernel over one device's arrays."""
    B, T, N, H = own[0].shape
    padding = ((0, 0), (0, 0), (0, -T % BLOCK))  # no query sees padded keys

    def tokens_last(x: jax.Array) -> jax.Array:
        return jnp.pad(x.reshape(B, T, -1).swapaxes(1, 2), padding)

    operands = [tokens_last(x) for x in (*own, *(rope or ()))]
    if prefix is not None:
        C = prefix[0].shape[0]
        shape = shape._replace(C=C)
        k_CI, v_CI = (jnp.pad(x.reshape(C, -1), ((0, -C % LANES), (0, 0))) for x in prefix)
        operands += [k_CI.T, v_CI]
    y = _call(shape._replace(N=N, K=own[1].shape[2]), operands)
    return y[:, :, :T].reshape(B, N, H, T).transpose(0, 3, 1, 2)


def _attend_forward(shape: Shape, own: Any, rope: Any, prefix: Any) -> tuple[jax.Array, Any]:
    return jax.vjp(lambda own, prefix: _splash(shape, own, rope, prefix), own, prefix)


def _attend_backward(shape: Shape, pull: Any, dy: jax.Array) -> tuple:
    d_own, d_prefix = pull(dy)
    return d_own, None, d_prefix


_attend.defvjp(_attend_forward, _attend_backward)


def _call(shape: Shape, operands: list[jax.Array]) -> jax.Array:
    """Run the kernel on arrays with tokens last."""
    q, H, group = operands[0], shape.H, shape.N // shape.K
    B, _, T = q.shape

    def block(features: int, head: bool = True) -> pl.BlockSpec:
        return pl.BlockSpec((1, features, BLOCK), lambda b, k, i: (b, k if head else 0, i))

    specs = [block(group * H), block(H), block(H)]
    specs += [block(H // 2, head=False)] * (2 if shape.rope else 0)
    if shape.C:
        C = operands[-1].shape[0]
        specs.append(pl.BlockSpec((H, C), lambda b, k, i: (k, 0)))
        specs.append(pl.BlockSpec((C, H), lambda b, k, i: (0, k)))
    held = [pltpu.VMEM((H, T), q.dtype), pltpu.VMEM((T, H), q.dtype)]
    sums = [pltpu.VMEM((shape.heads, BLOCK, n), jnp.float32) for n in (LANES, LANES, H)]
    return pl.pallas_call(
        functools.partial(_program, shape),
        grid=(B, shape.K, T // BLOCK),
        in_specs=specs,
        out_specs=specs[0],
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_shapes=[*held, *sums],
        name=f"{FORWARD}_{H}",
        interpret=shape.interpret,
        cost_estimate=pl.CostEstimate(
            flops=4 * H * scores(B * shape.N, T, shape.C),
            bytes_accessed=2 * q.nbytes + 2 * operands[1].nbytes,
            transcendentals=scores(B * shape.N, T, shape.C),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_ROOM + 4 * H * T,
        ),
    )(*operands)


def scores(heads: int, T: int, C: int) -> int:
    """Count the scores that a call computes.

    Args:
        T: tokens of a row, in whole blocks.
        C: tokens of the prefix.
    """
    blocks = T // BLOCK
    return heads * (blocks * (blocks + 1) // 2 * BLOCK**2 + T * (C + -C % LANES))


def vector_operations(H: int) -> int:
    """Return the operations of the vector units for each score: 8 for heads of 128."""
    return 7 + -(-H // LANES)


def head_width(source: str) -> int:
    """Return the width of a head from the name of the kernel's operation."""
    found = re.search(rf"{FORWARD}_(\d+)", source)
    assert found is not None  # `_call` names it
    return int(found[1])


class _Sums(NamedTuple):
    """Running softmaxes, of each head: largest scores, sums of weights, and weighted values."""

    most: Any
    total: Any
    y: Any

    def start(self, head: int, s: jax.Array, v: jax.Array) -> None:
        """Set the softmax to that of the first scores, queries by keys."""
        most = jnp.broadcast_to(s.max(1, keepdims=True), self.most.shape[1:])
        p = jnp.exp2(s - _wide(most, s.shape[1]))
        self.most[head] = most
        self.total[head] = jnp.broadcast_to(p.sum(1, keepdims=True), most.shape)
        self.y[head] = matrix_product(p.astype(v.dtype), v, 1, 0)

    def take(self, head: int, s: jax.Array, v: jax.Array) -> None:
        """Add more scores."""
        before = self.most[head]
        most = jnp.maximum(before, s.max(1, keepdims=True))
        p = jnp.exp2(s - _wide(most, s.shape[1]))
        change = jnp.exp2(before - most)
        self.most[head] = most
        self.total[head] = change * self.total[head] + p.sum(1, keepdims=True)
        more = matrix_product(p.astype(v.dtype), v, 1, 0)
        self.y[head] = _wide(change, v.shape[1]) * self.y[head] + more


def _wide(x: jax.Array, width: int) -> jax.Array:
    """Return one number a row, which all lanes hold, as a matrix of a width."""
    return x[:, :width] if width < LANES else jnp.tile(x, (1, width // LANES))


def _tokens(block: Any, count: int = 1) -> Any:
    return pl.ds(pl.multiple_of(block * BLOCK, BLOCK), count * BLOCK)


def _program(shape: Shape, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
    """Attention of a block of queries, of all query heads of a key/value head."""
    *shared, y_ref, keys, values, most, total, y = refs
    rope, prefix = shared[: 2 * shape.rope], shared[2 * shape.rope :]
    i, H, sums = pl.program_id(2), shape.H, _Sums(most, total, y)
    keys[:, _tokens(i)] = apply_rope_in_kernel(k_ref[0], rope)
    values[_tokens(i)] = v_ref[0].T

    def some_heads(n: Any, _: None) -> None:
        first = n * shape.heads
        rows = [pl.ds(pl.multiple_of((first + m) * H, H), H) for m in range(shape.heads)]
        queries = [_queries(shape, q_ref[0, own], rope) for own in rows]
        _own_block(queries, keys[:, _tokens(i)], values[_tokens(i)], sums)
        if prefix:
            _prefix_block(shape.C, queries, prefix, sums)

        def blocks(count: int, j: Any, _: None) -> None:
            for head, q in enumerate(queries):
                k, v = keys[:, _tokens(j, count)], values[_tokens(j, count)]
                sums.take(head, matrix_product(q, k, 1, 0), v)

        pairs = jax.lax.div(i, _TOGETHER)
        several = functools.partial(blocks, _TOGETHER)
        jax.lax.fori_loop(0, pairs, lambda j, _: several(j * _TOGETHER, _), None)
        jax.lax.fori_loop(pairs * _TOGETHER, i, functools.partial(blocks, 1), None)
        for head, own in enumerate(rows):
            y_ref[0, own] = (y[head] / _wide(total[head], H)).astype(y_ref.dtype).T

    jax.lax.fori_loop(0, shape.N // shape.K // shape.heads, some_heads, None)


def _queries(shape: Shape, q: jax.Array, rope: Any) -> jax.Array:
    """Return a head's queries, queries by features, so that scores are exponents of two."""
    rotated = apply_rope_in_kernel(q.astype(jnp.float32), rope)
    return (rotated * (shape.scale / math.log(2))).astype(q.dtype).T


def _own_block(queries: list[jax.Array], k: jax.Array, v: jax.Array, sums: _Sums) -> None:
    """Start with the keys of the queries' own block, of which each sees those up to itself."""
    query = jax.lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 0)
    key = jax.lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 1)
    for head, q in enumerate(queries):
        s = matrix_product(q, k, 1, 0)
        sums.start(head, jnp.where(key <= query, s, HIDDEN), v)


def _prefix_block(C: int, queries: list[jax.Array], prefix: Any, sums: _Sums) -> None:
    k, v = (ref[...] for ref in prefix)
    for head, q in enumerate(queries):
        s = matrix_product(q, k, 1, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
        sums.take(head, jnp.where(column < C, s, HIDDEN), v)
