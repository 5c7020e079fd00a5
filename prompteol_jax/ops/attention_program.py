"""What a program of `fused_attention` does with its heads of one row, forward and backward.

Arrays are features by tokens; scores are keys by queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from prompteol_jax.ops.einsum import matrix_product

LANES: Final = 128
WIDTH: Final = 2048  # heads times their width that a program holds at most
_HIDDEN: Final = -1e30


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        N, K, H: query and key/value heads, and their width.
        T, C, head: tokens of a row, of the prefix, and at the head of the row.
        turned: queries and keys are turned by their angles.
    """

    N: int
    K: int
    H: int
    T: int
    C: int
    head: int
    turned: bool
    interpret: bool

    @property
    def heads(self) -> int:
        """Key/value heads of one program: as many as fit, in whole tiles."""
        divisors = [k for k in range(1, self.K + 1) if self.K % k == 0]
        return max([k for k in divisors if k * self.H <= WIDTH] or [1])


def _probabilities(shape: Shape, q: Any, k: Any, k_C: Any, start: Any) -> tuple[Any, Any]:
    """Softmax of one head over its row `[T, Q]` and the prefix `[C, Q]`, float32."""
    scale = shape.H**-0.5
    scores, scores_C = matrix_product(k, q, 0, 0) * scale, matrix_product(k_C, q, 0, 0) * scale
    key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    query = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    own = (key >= start) | (key < shape.head)
    scores = jnp.where((key <= query) & own, scores, _HIDDEN)
    place = jax.lax.broadcasted_iota(jnp.int32, scores_C.shape, 0)
    scores_C = jnp.where(place < shape.C, scores_C, _HIDDEN)
    most = jnp.maximum(scores.max(0, keepdims=True), scores_C.max(0, keepdims=True))
    p, p_C = jnp.exp(scores - most), jnp.exp(scores_C - most)
    total = p.sum(0, keepdims=True) + p_C.sum(0, keepdims=True)
    return p / total, p_C / total


def _rows(head: Any, H: int) -> Any:
    return pl.ds(pl.multiple_of(head * H, H), H)


def _turned(shape: Shape, x: Any, angles: Sequence[Any], *, back: bool = False) -> Any:
    """One head turned by its tokens' angles, or back: the pairs (i, i + H/2) of its features.

    Source: Su et al. 2021 (RoFormer), in the half-split order of Hugging Face's LLaMA.
    """
    if not shape.turned:
        return x
    cos, sin = (ref[0] for ref in angles)
    sin = -sin if back else sin
    left, right = (part.astype(jnp.float32) for part in jnp.split(x, 2))
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin]).astype(x.dtype)


def _seen(shape: Shape, own: Any, refs: Sequence[Any], angles: Sequence[Any]) -> tuple:
    """What a head's queries see: its keys, turned, and values, and those of the prefix."""
    k_ref, v_ref, kc_ref, vc_ref = refs
    return _turned(shape, k_ref[0, own], angles), v_ref[0, own], kc_ref[own], vc_ref[own]


def forward(shape: Shape, *refs: Any) -> None:
    """Attention of the heads of one row."""
    q_ref, k_ref, v_ref, start_ref, *angles, kc_ref, vc_ref, y_ref = refs
    seen, group = (k_ref, v_ref, kc_ref, vc_ref), shape.N // shape.K

    def one_head(head: Any, _: None) -> None:
        k, v, k_C, v_C = _seen(shape, _rows(head, shape.H), seen, angles)

        def one_query(query: Any, _: None) -> None:
            rows = _rows(query, shape.H)
            q = _turned(shape, q_ref[0, rows], angles)
            p, p_C = _probabilities(shape, q, k, k_C, start_ref[0])
            p, p_C = p.astype(v.dtype), p_C.astype(v.dtype)
            y = matrix_product(v, p, 1, 0) + matrix_product(v_C, p_C, 1, 0)
            y_ref[0, rows] = y.astype(y_ref.dtype)

        jax.lax.fori_loop(head * group, (head + 1) * group, one_query, None)

    jax.lax.fori_loop(0, shape.heads, one_head, None)


def backward(shape: Shape, *refs: Any) -> None:
    """The gradients of the heads of one row; those of the prefix add up from row to row."""
    q_ref, k_ref, v_ref, start_ref, *angles, kc_ref, vc_ref, dy_ref = refs[:-5]
    dq_ref, dk_ref, dv_ref, dkc_ref, dvc_ref = refs[-5:]
    seen = k_ref, v_ref, kc_ref, vc_ref
    group, scale = shape.N // shape.K, shape.H**-0.5

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        dkc_ref[...] = jnp.zeros_like(dkc_ref)
        dvc_ref[...] = jnp.zeros_like(dvc_ref)

    def one_head(head: Any, _: None) -> None:
        own = _rows(head, shape.H)
        k, v, k_C, v_C = _seen(shape, own, seen, angles)

        def one_query(query: Any, sums: tuple) -> tuple:
            rows = _rows(query, shape.H)
            q, dy = _turned(shape, q_ref[0, rows], angles), dy_ref[0, rows]
            p, p_C = _probabilities(shape, q, k, k_C, start_ref[0])
            dp, dp_C = matrix_product(v, dy, 0, 0), matrix_product(v_C, dy, 0, 0)
            mean = (p * dp).sum(0, keepdims=True) + (p_C * dp_C).sum(0, keepdims=True)
            ds = (p * (dp - mean) * scale).astype(q.dtype)
            ds_C = (p_C * (dp_C - mean) * scale).astype(q.dtype)
            dq = matrix_product(k, ds, 1, 0) + matrix_product(k_C, ds_C, 1, 0)
            dq_ref[0, rows] = _turned(shape, dq, angles, back=True).astype(dq_ref.dtype)
            p, p_C = p.astype(dy.dtype), p_C.astype(dy.dtype)
            parts = (
                matrix_product(q, ds, 1, 1),
                matrix_product(dy, p, 1, 1),
                matrix_product(q, ds_C, 1, 1),
                matrix_product(dy, p_C, 1, 1),
            )
            return tuple(total + part for total, part in zip(sums, parts, strict=True))

        none = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v, k_C, v_C))
        first = head * group
        dk, dv, dk_C, dv_C = jax.lax.fori_loop(first, first + group, one_query, none)
        dk_ref[0, own] = _turned(shape, dk, angles, back=True).astype(dk_ref.dtype)
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
