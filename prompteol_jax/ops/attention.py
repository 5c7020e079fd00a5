"""Causal attention of right-padded or packed rows over themselves and a prefix that all rows share.

The prefix has no batch axis: its scores are computed against one copy of its keys and joined with
the row's own scores, so the keys are never broadcast over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompteol_jax.mesh import axis_size, constrain
from prompteol_jax.ops import einsum
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.rope import apply_rope
from prompteol_jax.ops.scan import Saved

KeysValues = tuple[Float[Array, "C K H"], Float[Array, "C K H"]]
LONG: Final = 1024  # queries of a row up to which all scores are computed together
BLOCK: Final = 128  # queries of a longer row whose scores are computed together
HIDDEN: Final = -1e30  # finite: a softmax over a row of it is uniform, not NaN


def attend(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: KeysValues | None = None,
) -> Float[Array, "B Q N H"]:
    """Attend to the own row and the prefix: grouped heads, softmax in float32.

        softmax(cap(scale * rope(q) rope(k)^T) + mask) v

    Args:
        q: queries `[B, Q, N, H]`, before rope.
        k, v: keys, before rope, and values of the row, `[B, T, K, H]`.
        prefix: keys, rotated, and values of the cached prefix.
    """
    q_BQNH, k_BTKH, v_BTKH = q.value, repeat_kv(k.value), repeat_kv(v.value)
    prefix = prefix and (repeat_kv(prefix[0]), repeat_kv(prefix[1]))
    B, Q, N, H = q_BQNH.shape
    if context.rope is not None and context.query_rope is not None:
        q_BQNH = apply_rope(q_BQNH, context.query_rope)
        k_BTKH = apply_rope(k_BTKH, context.rope)
    K = k_BTKH.shape[2]
    q_BQKGH = (q_BQNH * spec.scale).reshape(B, Q, K, N // K, H)
    seen = None if prefix is None else context.prefix_mask(prefix[0].shape[0])
    mix = partial(_mix, kv=(k_BTKH, v_BTKH), prefix=prefix, spec=spec)
    masks = context.row_mask(), seen
    y_BQKGH = mix(q_BQKGH, *masks) if Q <= LONG else _in_blocks(mix, q_BQKGH, *masks)
    y_BQNH = constrain(y_BQKGH.astype(q_BQNH.dtype).reshape(B, Q, N, H), "BQNH")
    return context.tape.save(y_BQNH).value


def _mix(
    q_BQKGH: jax.Array,
    mask_BQT: jax.Array,
    seen: jax.Array | None,
    *,
    kv: tuple[jax.Array, jax.Array],
    prefix: KeysValues | None,
    spec: AttentionSpec,
) -> jax.Array:
    """Return the values of a row and of the prefix, weighted for each query.

    Args:
        q_BQKGH: queries, scaled and after rope.
        seen: tokens of the prefix that queries see, `[C]` or `[b, 1, 1, Q, C]`; None for all.
    """
    k_BTKH, v_BTKH = kv
    scores_BKGQT = einsum.dot("BQKGH,BTKH->BKGQT", q_BQKGH, k_BTKH)
    scores_BKGQT = jnp.where(mask_BQT[:, None, None], soft_cap(scores_BKGQT, spec.softcap), HIDDEN)
    if prefix is None:
        p_BKGQT = jax.nn.softmax(scores_BKGQT, axis=-1).astype(v_BTKH.dtype)
        return einsum.dot("BKGQT,BTKH->BQKGH", p_BKGQT, v_BTKH)
    k_CKH, v_CKH = prefix
    C = k_CKH.shape[0]
    scores_BKGQC = einsum.dot("BQKGH,CKH->BKGQC", q_BQKGH, k_CKH)
    scores_BKGQC = soft_cap(scores_BKGQC, spec.softcap)
    if seen is not None:
        scores_BKGQC = jnp.where(seen, scores_BKGQC, HIDDEN)
    joined = jnp.concatenate([scores_BKGQC, scores_BKGQT], axis=-1)
    p = jax.nn.softmax(joined, axis=-1).astype(v_BTKH.dtype)
    y_BQKGH = einsum.dot("BKGQC,CKH->BQKGH", p[..., :C], v_CKH)
    return y_BQKGH + einsum.dot("BKGQT,BTKH->BQKGH", p[..., C:], v_BTKH)


def _in_blocks(
    mix: Callable[..., jax.Array],
    q_BQKGH: jax.Array,
    mask_BQT: jax.Array,
    seen: jax.Array | None,
) -> jax.Array:
    """Call `mix` for blocks of queries in turn: memory grows with T, and not with its square."""
    Q = q_BQKGH.shape[1]
    count = -(-Q // BLOCK)

    def blocks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * BLOCK - Q)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, BLOCK, *x.shape[2:]), 1, 0)

    own_seen = [] if seen is None or seen.ndim == 1 else [seen[:, 0, 0]]
    operands = [q_BQKGH, mask_BQT, *own_seen]

    def block(x: list[jax.Array]) -> jax.Array:
        q, mask, *own = x
        return mix(q, mask, own[0][:, None, None] if own else seen)

    y = jax.lax.map(block, [blocks(x) for x in operands])
    y_BQKGH = jnp.moveaxis(y, 0, 1).reshape(q_BQKGH.shape[0], count * BLOCK, *y.shape[3:])
    return y_BQKGH[:, :Q]


def soft_cap(scores: jax.Array, cap: float | None) -> jax.Array:
    """Bound scores smoothly, cap * tanh(scores / cap); None for no bound."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def repeat_kv(x: jax.Array) -> jax.Array:
    """Repeat the heads of `[..., K, H]` where K is less than the model axis.

    Groups of devices then hold the head that their queries need, and only that.
    """
    model = axis_size("model")
    heads = x.shape[-2]
    if model <= heads or model % heads:
        return x
    dims = "BTKH" if x.ndim == 4 else "CKH"
    return constrain(jnp.repeat(x, model // heads, axis=-2), dims)
