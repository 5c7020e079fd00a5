"""Attention of long rows: blocks of queries against blocks of keys, with a running softmax.

Neither the scores nor the mask of a whole row exist at any time, in the forward or the backward
pass, so memory grows with the length of a row and not with its square. Blocks of keys that no query
of a block sees are left out: those after it, and those before its window or its sentence.

Math: for each block of keys, m' = max(m, max s); l' = e^(m - m') l + sum e^(s - m');
y' = e^(m - m') y + e^(s - m') v; the result is y / l.
Source: Rabe and Staats 2021, section 2; Dao et al. 2022 (FlashAttention), algorithms 1 and 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from prompteol_jax.ops import einsum
from prompteol_jax.ops.context import HIDDEN, AttentionContext, AttentionSpec

QUERIES: Final = 256  # of a block
KEYS: Final = 256  # of a block


class Sight(NamedTuple):
    """What decides which keys a query sees; arrays that all rows share have B = 1.

    Attributes:
        index_BQ: indices of the queries in their rows, position_BQ: their positions.
        end_BQ: index behind the last key that each query sees.
        start_BQ: index of the first token of each query's sentence, in packed rows.
        position_BT: positions of the keys; like position_BQ None where there is no window.
        window, seen_C: as in `AttentionContext`, seen_C its `prefix_mask_C`.
    """

    index_BQ: Any
    end_BQ: Any
    start_BQ: Any = None
    position_BQ: Any = None
    position_BT: Any = None
    window: Any = None
    seen_C: Any = None


class Shape(NamedTuple):
    """What the loops are compiled for.

    Attributes:
        prefix_tokens: tokens at the beginning of a packed row that all its sentences see.
        queries, keys: tokens of a block.
    """

    spec: AttentionSpec
    prefix_tokens: int
    queries: int
    keys: int


class _Softmax(NamedTuple):
    """A running softmax: the largest score, the sum of weights, and the weighted values."""

    most_BKGQ: jax.Array
    total_BKGQ: jax.Array
    y_BKGQH: jax.Array

    def take(self, s_BKGQT: jax.Array, values: str, v: jax.Array) -> _Softmax:
        """Return the softmax with more scores; `values` is the product's equation."""
        most = jnp.maximum(self.most_BKGQ, s_BKGQT.max(-1))
        p_BKGQT = jnp.exp(s_BKGQT - most[..., None])
        before = jnp.exp(self.most_BKGQ - most)
        more_BKGQH = _product(values, p_BKGQT.astype(v.dtype), v)
        total = before * self.total_BKGQ + p_BKGQT.sum(-1)
        return _Softmax(most, total, before[..., None] * self.y_BKGQH + more_BKGQH)


def mix(
    q_BQKGH: jax.Array,
    kv: tuple[jax.Array, jax.Array],
    prefix: tuple[jax.Array, jax.Array] | None,
    context: AttentionContext,
    spec: AttentionSpec,
) -> jax.Array:
    """Return the values of a row and of the prefix, weighted for each query; see `attention`.

    Args:
        q_BQKGH: queries, scaled and after rope.
        kv: keys, after rope, and values of the row, `[B, T, K, H]`.
        prefix: keys and values that all rows see before their own, `[C, K, H]`.
    """
    Q, T = q_BQKGH.shape[1], kv[0].shape[1]
    shape = Shape(spec, context.prefix_tokens, min(QUERIES, Q), min(KEYS, T))
    sight = _padded_sight(_sight(context, Q), -Q % shape.queries, -T % shape.keys)
    q_BKGQH = _padded(q_BQKGH, -Q % shape.queries).transpose(0, 2, 3, 1, 4)
    own = tuple(_padded(x, -T % shape.keys).swapaxes(1, 2) for x in kv)
    shared = prefix and tuple(x.swapaxes(0, 1) for x in prefix)
    y_BKGQH: jax.Array = _mix(shape, q_BKGQH, own, shared, sight)
    return y_BKGQH.transpose(0, 3, 1, 2, 4)[:, :Q]


def _sight(context: AttentionContext, Q: int) -> Sight:
    index_BQ = jnp.arange(Q)[None] if context.query_BQ is None else context.query_BQ
    start_BT = context.segment_start_BT
    windowed = context.window is not None
    return Sight(
        index_BQ,
        index_BQ + 1 if context.end_BT is None else context.queries(context.end_BT),
        None if start_BT is None else context.queries(start_BT),
        context.query_positions() if windowed else None,
        context.position_BT if windowed else None,
        context.window,
        context.prefix_mask_C,
    )


def _padded(x: jax.Array, more: int) -> jax.Array:
    """Pad `[B, T, ...]` at the end of its rows."""
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x


def _padded_sight(sight: Sight, queries: int, keys: int) -> Sight:
    """Let queries that fill the last block see what the last query sees; no query sees the keys."""

    def edge(x: Any, more: int) -> Any:
        return x if x is None else jnp.pad(x, ((0, 0), (0, more)), mode="edge")

    return sight._replace(
        index_BQ=edge(sight.index_BQ, queries),
        end_BQ=edge(sight.end_BQ, queries),
        start_BQ=edge(sight.start_BQ, queries),
        position_BQ=edge(sight.position_BQ, queries),
        position_BT=edge(sight.position_BT, keys),
    )


def _block(x: Any, number: Any, size: int, axis: int) -> Any:
    return x if x is None else jax.lax.dynamic_slice_in_dim(x, number * size, size, axis)


def _queries_sight(sight: Sight, number: Any, size: int) -> Sight:
    """Return the sight of one block of queries."""
    return sight._replace(
        index_BQ=_block(sight.index_BQ, number, size, 1),
        end_BQ=_block(sight.end_BQ, number, size, 1),
        start_BQ=_block(sight.start_BQ, number, size, 1),
        position_BQ=_block(sight.position_BQ, number, size, 1),
    )


def _bounds(shape: Shape, sight: Sight) -> tuple[Any, Any]:
    """Return the first block of keys that a block of queries sees, and the one after the last."""
    end = (sight.end_BQ.max() - 1) // shape.keys + 1
    first = jnp.int32(0)
    if shape.prefix_tokens == 0:
        if sight.start_BQ is not None:
            first = jnp.maximum(first, sight.start_BQ.min())
        if sight.window is not None:
            # Within a sentence, distances of indices are those of positions.
            first = jnp.maximum(first, sight.index_BQ.min() - sight.window + 1)
    return first // shape.keys, end


def _seen(shape: Shape, sight: Sight, number: Any) -> jax.Array:
    """Return which keys of a block each query of a block sees, `[b, 1, 1, Q, keys]`."""
    key_T = number * shape.keys + jnp.arange(shape.keys)
    mask_BQT = key_T < sight.end_BQ[..., None]
    if sight.start_BQ is not None:
        mask_BQT &= (key_T >= sight.start_BQ[..., None]) | (key_T < shape.prefix_tokens)
    if sight.window is not None:
        position_BT = _block(sight.position_BT, number, shape.keys, 1)
        distance_BQT = sight.position_BQ[..., None] - position_BT[:, None]
        mask_BQT &= jnp.abs(distance_BQT) < sight.window
    return mask_BQT[:, None, None]


def _seen_prefix(sight: Sight, C: int) -> Any:
    """Return which tokens of the prefix each query of a block sees; None for all."""
    if sight.window is None:
        return sight.seen_C
    near = (sight.position_BQ[..., None] - jnp.arange(C) < sight.window)[:, None, None]
    return near if sight.seen_C is None else near & sight.seen_C


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return einsum.product(equation, x, y, jnp.float32)


def _masked(s: jax.Array, mask: Any) -> jax.Array:
    return s if mask is None else jnp.where(mask, s, HIDDEN)


@lambda function: jax.custom_vjp(function, nondiff_argnums=(0,))
def _mix(shape: Shape, q_BKGQH: Any, own: Any, prefix: Any, sight: Sight) -> jax.Array:
    return _forward(shape, q_BKGQH, own, prefix, sight)[0]


def _forward(
    shape: Shape, q_BKGQH: Any, own: Any, prefix: Any, sight: Sight
) -> tuple[jax.Array, tuple]:
    """Return the weighted values, float32, and what the backward pass reads."""
    k_BKTH, v_BKTH = own

    def of_queries(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = _block(q_BKGQH, number, shape.queries, 3)
        ours = _queries_sight(sight, number, shape.queries)

        def of_keys(n: Any, found: _Softmax) -> _Softmax:
            k, v = (_block(x, n, shape.keys, 2) for x in (k_BKTH, v_BKTH))
            s = shape.spec.cap(_product("BKGQH,BKTH->BKGQT", q, k))
            return found.take(_masked(s, _seen(shape, ours, n)), "BKGQT,BKTH->BKGQH", v)

        start = _begin(shape, q, prefix, ours)
        most, total, y = jax.lax.fori_loop(*_bounds(shape, ours), of_keys, start)
        return y / total[..., None], most + jnp.log(total)

    count = q_BKGQH.shape[3] // shape.queries
    y, log_total = jax.lax.map(of_queries, jnp.arange(count))
    y_BKGQH = _joined(y)
    return y_BKGQH, (q_BKGQH, own, prefix, sight, y_BKGQH, _joined(log_total[..., None])[..., 0])


def _begin(shape: Shape, q: jax.Array, prefix: Any, sight: Sight) -> _Softmax:
    """Return the running softmax of a block of queries after the prefix."""
    none = jnp.full(q.shape[:-1], HIDDEN, jnp.float32)
    start = _Softmax(none, jnp.zeros_like(none), jnp.zeros(q.shape, jnp.float32))
    if prefix is None or prefix[0].shape[1] == 0:
        return start
    k_KCH, v_KCH = prefix
    s = shape.spec.cap(_product("BKGQH,KCH->BKGQC", q, k_KCH))
    seen = _seen_prefix(sight, k_KCH.shape[1])
    return start.take(_masked(s, seen), "BKGQC,KCH->BKGQH", v_KCH)


def _joined(x: jax.Array) -> jax.Array:
    """Join blocks of queries, `[blocks, B, K, G, Q, H]`, to rows."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _backward(shape: Shape, saved: tuple, dy_BKGQH: jax.Array) -> tuple:
    q_BKGQH, own, prefix, *_ = saved
    gradients = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (own, prefix))
    step = partial(_backward_of_queries, shape, saved, dy_BKGQH)
    gradients, dq = jax.lax.scan(step, gradients, jnp.arange(q_BKGQH.shape[3] // shape.queries))
    down = jax.tree.map(lambda x, like: x.astype(like.dtype), gradients, (own, prefix))
    return _joined(dq).astype(q_BKGQH.dtype), *down, None


def _backward_of_queries(
    shape: Shape, saved: tuple, dy_BKGQH: jax.Array, gradients: tuple, number: jax.Array
) -> tuple[tuple, jax.Array]:
    """Add one block of queries to the gradients of keys and values; return its own."""
    q_BKGQH, own, prefix, sight, y_BKGQH, log_total_BKGQ = saved
    q, y, dy, log_total = (
        _block(x, number, shape.queries, 3) for x in (q_BKGQH, y_BKGQH, dy_BKGQH, log_total_BKGQ)
    )
    ours = _queries_sight(sight, number, shape.queries)
    mean = (dy * y).sum(-1)

    def scores(k: jax.Array, v: jax.Array, mask: Any, dims: str) -> tuple[jax.Array, ...]:
        """Return gradients of q, k and v through one block of keys."""
        keys = f"BKGQ{dims[-2]}"
        s = shape.spec.cap(_product(f"BKGQH,{dims}->{keys}", q, k))
        slope = 1.0 if shape.spec.softcap is None else 1 - (s / shape.spec.softcap) ** 2
        p = jnp.exp(_masked(s, mask) - log_total[..., None])
        dp = _product(f"BKGQH,{dims}->{keys}", dy.astype(v.dtype), v)
        ds = (p * (dp - mean[..., None]) * slope).astype(k.dtype)
        return (
            _product(f"{keys},{dims}->BKGQH", ds, k),
            _product(f"{keys},BKGQH->{dims}", ds, q),
            _product(f"{keys},BKGQH->{dims}", p.astype(v.dtype), dy.astype(v.dtype)),
        )

    def of_keys(n: Any, sums: tuple) -> tuple:
        dq, rows = sums
        k, v = (_block(x, n, shape.keys, 2) for x in own)
        more, *of_rows = scores(k, v, _seen(shape, ours, n), "BKTH")
        pairs = zip(rows, of_rows, strict=True)
        return dq + more, tuple(_add(x, n * shape.keys, d) for x, d in pairs)

    dq, rows = jnp.zeros(q.shape, jnp.float32), gradients[0]
    dq, rows = jax.lax.fori_loop(*_bounds(shape, ours), of_keys, (dq, rows))
    if prefix is None or prefix[0].shape[1] == 0:
        return (rows, gradients[1]), dq
    k_KCH, v_KCH = prefix
    more, *of_prefix = scores(k_KCH, v_KCH, _seen_prefix(ours, k_KCH.shape[1]), "KCH")
    shared = tuple(x + d for x, d in zip(gradients[1], of_prefix, strict=True))
    return (rows, shared), dq + more


def _add(x: jax.Array, at: Any, more: jax.Array) -> jax.Array:
    """Add to a block of `[B, K, T, H]`."""
    before = jax.lax.dynamic_slice_in_dim(x, at, more.shape[2], 2)
    return jax.lax.dynamic_update_slice_in_dim(x, before + more, at, 2)


_mix.defvjp(_forward, _backward)
