"""Causal attention of right-padded or packed rows over themselves and a prefix that all rows share.

The prefix has no batch axis: its scores are computed against one copy of its keys and joined with
the row's own scores, so the keys are never broadcast over the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompteol_jax.mesh import axis_size, constrain
from prompteol_jax.ops import blockwise, einsum
from prompteol_jax.ops.context import HIDDEN, LONG, AttentionContext, AttentionSpec
from prompteol_jax.ops.rope import apply_rope
from prompteol_jax.ops.scan import Saved

KeysValues = tuple[Float[Array, "C K H"], Float[Array, "C K H"]]


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
    prefix = repeat_prefix(prefix)
    B, Q, N, H = q_BQNH.shape
    if context.rope is not None and context.query_rope is not None:
        q_BQNH = apply_rope(q_BQNH, context.query_rope)
        k_BTKH = apply_rope(k_BTKH, context.rope)
    K = k_BTKH.shape[2]
    q_BQKGH = (q_BQNH * spec.scale).reshape(B, Q, K, N // K, H)
    mix = _mix if Q <= LONG else blockwise.mix
    y_BQKGH = mix(q_BQKGH, (k_BTKH, v_BTKH), prefix, context, spec)
    y_BQNH = constrain(y_BQKGH.astype(q_BQNH.dtype).reshape(B, Q, N, H), "BQNH")
    return context.tape.save(y_BQNH).value


def _mix(
    q_BQKGH: jax.Array,
    kv: tuple[jax.Array, jax.Array],
    prefix: KeysValues | None,
    context: AttentionContext,
    spec: AttentionSpec,
) -> jax.Array:
    """Return the values of a row and of the prefix, weighted for each query; all scores together.

    Args:
        q_BQKGH: queries, scaled and after rope.
        kv: keys, after rope, and values of the row, `[B, T, K, H]`.
    """
    k_BTKH, v_BTKH = kv
    scores_BKGQT = spec.cap(einsum.dot("BQKGH,BTKH->BKGQT", q_BQKGH, k_BTKH))
    mask_BQT = context.row_mask(k_BTKH.shape[1])
    scores_BKGQT = jnp.where(mask_BQT[:, None, None], scores_BKGQT, HIDDEN)
    if prefix is None:
        p_BKGQT = jax.nn.softmax(scores_BKGQT, axis=-1).astype(v_BTKH.dtype)
        return einsum.dot("BKGQT,BTKH->BQKGH", p_BKGQT, v_BTKH)
    k_CKH, v_CKH = prefix
    C = k_CKH.shape[0]
    scores_BKGQC = spec.cap(einsum.dot("BQKGH,CKH->BKGQC", q_BQKGH, k_CKH))
    seen = context.prefix_mask(C)
    if seen is not None:
        scores_BKGQC = jnp.where(seen, scores_BKGQC, HIDDEN)
    joined = jnp.concatenate([scores_BKGQC, scores_BKGQT], axis=-1)
    p = jax.nn.softmax(joined, axis=-1).astype(v_BTKH.dtype)
    y_BQKGH = einsum.dot("BKGQC,CKH->BQKGH", p[..., :C], v_CKH)
    return y_BQKGH + einsum.dot("BKGQT,BTKH->BQKGH", p[..., C:], v_BTKH)


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


def repeat_prefix(prefix: KeysValues | None) -> KeysValues | None:
    """Repeat the heads of a cached prefix likewise."""
    return prefix and (repeat_kv(prefix[0]), repeat_kv(prefix[1]))
