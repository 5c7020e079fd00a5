"""Attention of packed rows as one TPU kernel: scores never leave the core.

XLA writes the scores of short rows to HBM and reads them back several times; here a program of the
grid holds one row with some of its heads, and everything between the projections happens inside.
Arrays are as XLA's products leave them, tokens last: a head is then a slice of whole tiles, and
scores, keys by queries, have a row's own segment starts along them. The result is that of
`attention.attend`, except for rounding.

Rope is applied inside as well: applied by XLA, queries and keys pass through HBM in float32 several
times.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import on_each_device
from prompteol_jax.ops import layer_slice
from prompteol_jax.ops.attention import HIDDEN, KeysValues, repeat_kv, repeat_prefix
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.kernel import LANES, kernel_call, matrix_product
from prompteol_jax.ops.layer_slice import LayerSlice, unstacked
from prompteol_jax.ops.rope import Rope, apply_rope_in_kernel, rope_of_rows
from prompteol_jax.ops.scan import Saved

FORWARD: Final = "packed_attention_forward"
BACKWARD: Final = "packed_attention_backward"
WIDTH: Final = 2048  # heads times their width that a program holds at most


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        N, K, H: query and key/value heads, and their width.
        T, C: tokens of a row, of the cached prefix.
        prefix_tokens: tokens of the shared prefix at the beginning of the row.
        scale, softcap: factor and bound of the scores.
    """

    N: int
    K: int
    H: int
    T: int
    C: int
    prefix_tokens: int
    scale: float
    softcap: float | None
    rope: bool
    interpret: bool

    @property
    def heads(self) -> int:
        """Key/value heads of one program: as many as fit, in whole tiles."""
        divisors = [k for k in range(1, self.K + 1) if self.K % k == 0]
        return max([k for k in divisors if k * self.H <= WIDTH] or [1])


def supports(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: KeysValues | None,
) -> str | None:
    """Return why the kernel cannot run: it takes packed rows of whole tiles, all tokens queries."""
    T = q.value.shape[1]
    if context.query_BQ is not None:
        return "queries are not all tokens"
    if context.segment_start_BT is None:
        return "rows are not packed"
    if T % LANES or T > 4 * LANES:
        return f"not supported: rows of {T} tokens, no multiple of {LANES} up to {4 * LANES}"
    rotated = q.value.shape[-1] if context.rope is None else 2 * context.rope[0].shape[-1]
    absent = {
        "bidirectional": context.end_BT is not None,
        "padded prefix": context.prefix_mask_C is not None,
        "window": context.window is not None,
        "rope of a part of each head": rotated != q.value.shape[-1],
    }
    given = [name for name, is_given in absent.items() if is_given]
    return f"not supported: {', '.join(given)}" if given else None


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
    """Attend every token to its own sentence's tokens up to itself, and to the whole prefix.

    On a mesh every device runs the kernel over its own rows and heads.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    k, v = (_repeated(x) for x in (k, v))
    prefix, rope = repeat_prefix(prefix), rope_of_rows(context.rope, len(q.value))
    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    own, slices = [x.value for x in (q, k, v)], [x.slice for x in (q, k, v)]
    inputs = (
        [rows] * 3,
        [s and layer_slice.spec(rows) for s in slices],
        PartitionSpec("data"),
        None if prefix is None else (heads, heads),
        None if rope is None else (PartitionSpec("data"),) * 2,
    )
    T, _, H = own[0].shape[1:]
    score = spec.scale, spec.softcap
    shape = Shape(0, 0, H, T, 0, context.prefix_tokens, *score, rope is not None, interpret)
    call = functools.partial(_local, shape)
    run = on_each_device(call, inputs, rows)
    return run(own, slices, context.segment_start_BT, prefix, rope)


def _repeated(x: Saved) -> Saved:
    repeated = repeat_kv(x.value)
    return x if repeated is x.value else Saved(repeated)


def _local(
    shape: Shape,
    own: list[jax.Array],
    slices: list[LayerSlice | None],
    start_BT: jax.Array,
    prefix: KeysValues | None,
    rope: Rope | None,
) -> jax.Array:
    """Run the kernel over one device's arrays, as `[B, N * H, T]`."""
    q_BTNH, k_BTKH, _ = own
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    C = 0 if prefix is None else prefix[0].shape[0]
    k_CKH, v_CKH = prefix or (jnp.zeros((0, K, H), k_BTKH.dtype),) * 2
    padding = ((0, 0), (0, LANES - C % LANES))

    def tokens_last(x: jax.Array) -> jax.Array:
        return x.transpose(0, 2, 3, 1).reshape(B, -1, T)

    slices = [s and s.map(tokens_last) for s in slices]
    shared = [jnp.pad(x.reshape(C, K * H).T, padding) for x in (k_CKH, v_CKH)]
    tokens = [start_BT[:, None], *(x.swapaxes(1, 2) for x in rope or ())]
    shape = shape._replace(N=N, K=K, C=C)
    y = _attend(shape, [tokens_last(x) for x in own], slices, tokens, *shared)
    return y.reshape(B, N, H, T).transpose(0, 3, 1, 2)


@lambda function: jax.custom_vjp(function, nondiff_argnums=(0,))
def _attend(
    shape: Shape, own: list, slices: list[LayerSlice | None], tokens: list, k_C: Any, v_C: Any
) -> jax.Array:
    return kernel_call(
        functools.partial(_forward, shape),
        _in_stacks(own, slices),
        [*tokens, k_C, v_C],
        out_shape=jax.ShapeDtypeStruct(own[0].shape, own[0].dtype),
        in_specs=_specs(shape, k_C.shape[1]),
        out_specs=_specs(shape, k_C.shape[1])[0],
        **_call(shape, own[0], FORWARD),
    )


def _in_stacks(own: list[jax.Array], slices: list[LayerSlice | None]) -> list[LayerSlice]:
    return [where or unstacked(x) for x, where in zip(own, slices, strict=True)]


def _attend_forward(
    shape: Shape, own: list, slices: list[LayerSlice | None], *operands: Any
) -> tuple[jax.Array, tuple]:
    return _attend(shape, own, slices, *operands), (_in_stacks(own, slices), *operands)


def _attend_backward(shape: Shape, operands: tuple, dy: jax.Array) -> tuple:
    stacks, tokens, k_C, v_C = operands
    specs = _specs(shape, k_C.shape[1])
    wide = jax.ShapeDtypeStruct(k_C.shape, jnp.float32)
    like = [jax.ShapeDtypeStruct(part.stack.shape[1:], part.stack.dtype) for part in stacks]
    *own, dk_C, dv_C = kernel_call(
        functools.partial(_backward, shape),
        stacks,
        [*tokens, k_C, v_C, dy],
        out_shape=(*like, wide, wide),
        in_specs=[*specs, specs[0]],
        out_specs=(*specs[:3], *specs[-2:]),
        **_call(shape, like[0], BACKWARD),
    )
    return own, None, None, dk_C.astype(k_C.dtype), dv_C.astype(v_C.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(shape: Shape, q: Any, name: str) -> dict[str, Any]:
    """Return the options of both kernels: blocks of heads outside, rows inside.

    The gradient of the prefix is summed over the rows, which then follow one another. What a call
    costs tells XLA which of its arrays to keep in the core's memory.
    """
    B, backward = q.shape[0], name == BACKWARD
    order = ("parallel", "arbitrary" if backward else "parallel")
    heads = (3 * shape.N + 4 * shape.K) if backward else (2 * shape.N + 2 * shape.K)
    return dict(
        grid=(shape.K // shape.heads, B),
        name=name,
        interpret=shape.interpret,
        cost_estimate=pl.CostEstimate(
            flops=flops(B, shape.T, shape.N * shape.H, backward=backward),
            bytes_accessed=q.dtype.itemsize * B * shape.T * shape.H * heads,
            transcendentals=B * shape.N * shape.T * shape.T,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
    )


def _specs(shape: Shape, C: int) -> list[pl.BlockSpec]:
    """Return blocks of q, k, v, segment starts, rope, and of the prefix's k and v."""
    width = shape.heads * shape.H
    group = shape.N // shape.K

    def row(heads: Any, b: Any) -> tuple:
        return b, heads, 0

    def token(features: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, features, shape.T), lambda heads, b: (b, 0, 0))

    return [
        pl.BlockSpec((1, width * group, shape.T), row),
        pl.BlockSpec((1, width, shape.T), row),
        pl.BlockSpec((1, width, shape.T), row),
        token(1),
        *[token(shape.H // 2)] * (2 if shape.rope else 0),
        pl.BlockSpec((width, C), lambda heads, b: (heads, 0)),
        pl.BlockSpec((width, C), lambda heads, b: (heads, 0)),
    ]


# What a program does with its heads of one row. Arrays are features by tokens; scores are keys by
# queries.


def _capped(shape: Shape, scores: Any) -> tuple[Any, Any]:
    """Return the scores within the bound, and the slope of the bound there."""
    if shape.softcap is None:
        return scores, 1.0
    share = jnp.tanh(scores * (1 / shape.softcap))
    return shape.softcap * share, 1 - share * share


def _probabilities(shape: Shape, q: Any, k: Any, k_C: Any, start: Any) -> tuple[Any, Any]:
    """Softmax of one head over its row `[T, Q]` and the prefix `[C, Q]`, float32.

    Also returns the scores' slopes.
    """
    scores, slope = _capped(shape, matrix_product(k, q, 0, 0) * shape.scale)
    scores_C, slope_C = _capped(shape, matrix_product(k_C, q, 0, 0) * shape.scale)
    key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    query = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    own = (key >= start) | (key < shape.prefix_tokens)
    scores = jnp.where((key <= query) & own, scores, HIDDEN)
    column = jax.lax.broadcasted_iota(jnp.int32, scores_C.shape, 0)
    scores_C = jnp.where(column < shape.C, scores_C, HIDDEN)
    most = jnp.maximum(scores.max(0, keepdims=True), scores_C.max(0, keepdims=True))
    p, p_C = jnp.exp(scores - most), jnp.exp(scores_C - most)
    total = p.sum(0, keepdims=True) + p_C.sum(0, keepdims=True)
    return (p / total, p_C / total), (slope, slope_C)


def _rows(head: Any, H: int) -> Any:
    return pl.ds(pl.multiple_of(head * H, H), H)


def _seen(shape: Shape, own: Any, refs: Sequence[Any], rope: Sequence[Any]) -> tuple:
    """Return what a head's queries see: its keys, rotated, and values, and those of the prefix."""
    k_ref, v_ref, kc_ref, vc_ref = refs
    return apply_rope_in_kernel(k_ref[0, own], rope), v_ref[0, own], kc_ref[own], vc_ref[own]


def _forward(shape: Shape, *refs: Any) -> None:
    """Attention of the heads of one row."""
    q_ref, k_ref, v_ref, start_ref, *rope, kc_ref, vc_ref, y_ref = refs
    seen, group = (k_ref, v_ref, kc_ref, vc_ref), shape.N // shape.K

    def one_head(head: Any, _: None) -> None:
        k, v, k_C, v_C = _seen(shape, _rows(head, shape.H), seen, rope)

        def one_query(query: Any, _: None) -> None:
            rows = _rows(query, shape.H)
            q = apply_rope_in_kernel(q_ref[0, rows], rope)
            (p, p_C), _ = _probabilities(shape, q, k, k_C, start_ref[0])
            p, p_C = p.astype(v.dtype), p_C.astype(v.dtype)
            y = matrix_product(v, p, 1, 0) + matrix_product(v_C, p_C, 1, 0)
            y_ref[0, rows] = y.astype(y_ref.dtype)

        jax.lax.fori_loop(head * group, (head + 1) * group, one_query, None)

    jax.lax.fori_loop(0, shape.heads, one_head, None)


def _backward(shape: Shape, *refs: Any) -> None:
    """The gradients of the heads of one row; those of the prefix add up from row to row."""
    q_ref, k_ref, v_ref, start_ref, *rope, kc_ref, vc_ref, dy_ref = refs[:-5]
    dq_ref, dk_ref, dv_ref, dkc_ref, dvc_ref = refs[-5:]
    seen = k_ref, v_ref, kc_ref, vc_ref
    group = shape.N // shape.K

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        dkc_ref[...] = jnp.zeros_like(dkc_ref)
        dvc_ref[...] = jnp.zeros_like(dvc_ref)

    def one_head(head: Any, _: None) -> None:
        own = _rows(head, shape.H)
        k, v, k_C, v_C = _seen(shape, own, seen, rope)

        def one_query(query: Any, sums: tuple) -> tuple:
            rows = _rows(query, shape.H)
            q, dy = apply_rope_in_kernel(q_ref[0, rows], rope), dy_ref[0, rows]
            (p, p_C), (slope, slope_C) = _probabilities(shape, q, k, k_C, start_ref[0])
            dp, dp_C = matrix_product(v, dy, 0, 0), matrix_product(v_C, dy, 0, 0)
            mean = (p * dp).sum(0, keepdims=True) + (p_C * dp_C).sum(0, keepdims=True)
            ds = (p * (dp - mean) * (slope * shape.scale)).astype(q.dtype)
            ds_C = (p_C * (dp_C - mean) * (slope_C * shape.scale)).astype(q.dtype)
            dq = matrix_product(k, ds, 1, 0) + matrix_product(k_C, ds_C, 1, 0)
            dq_ref[0, rows] = apply_rope_in_kernel(dq, rope, back=True).astype(dq_ref.dtype)
            p, p_C = p.astype(dy.dtype), p_C.astype(dy.dtype)
            products = (
                matrix_product(q, ds, 1, 1),
                matrix_product(dy, p, 1, 1),
                matrix_product(q, ds_C, 1, 1),
                matrix_product(dy, p_C, 1, 1),
            )
            return tuple(total + part for total, part in zip(sums, products, strict=True))

        none = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v, k_C, v_C))
        first = head * group
        dk, dv, dk_C, dv_C = jax.lax.fori_loop(first, first + group, one_query, none)
        dk_ref[0, own] = apply_rope_in_kernel(dk, rope, back=True).astype(dk_ref.dtype)
        dv_ref[0, own] = dv.astype(dv_ref.dtype)
        dkc_ref[own] += dk_C
        dvc_ref[own] += dv_C

    jax.lax.fori_loop(0, shape.heads, one_head, None)


def flops(B: int, T: int, width: int, *, backward: bool) -> int:
    """FLOPs of a call over `width` rows of queries; products span the row and the prefix.

    Forward: scores and values; backward: scores again and four gradients.
    """
    products = 5 if backward else 2
    return 2 * products * B * T * (T + LANES) * width
