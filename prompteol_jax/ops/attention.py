"""Causal attention of right-padded or packed rows over themselves and a prefix that all rows share.

The prefix has no batch axis: its scores are computed against one copy of its keys and joined with
the row's own scores, so the keys are never broadcast over the batch.
"""

from __future__ import annotations

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
    prefix = prefix and tuple(repeat_kv(a) for a in prefix)
    B, Q, N, H = q_BQNH.shape
    if context.rope is not None:
        q_BQNH = apply_rope(q_BQNH, context.query_rope)
        k_BTKH = apply_rope(k_BTKH, context.rope)
    K = k_BTKH.shape[2]
    q_BQKGH = (q_BQNH * spec.scale).reshape(B, Q, K, N // K, H)
    scores_BKGQT = _capped(einsum.dot("BQKGH,BTKH->BKGQT", q_BQKGH, k_BTKH), spec)
    scores_BKGQT = jnp.where(context.row_mask()[:, None, None], scores_BKGQT, HIDDEN)
    if prefix is None:
        p_BKGQT = jax.nn.softmax(scores_BKGQT, axis=-1).astype(v_BTKH.dtype)
        y_BQKGH = einsum.dot("BKGQT,BTKH->BQKGH", p_BKGQT, v_BTKH)
    else:
        k_CKH, v_CKH = prefix
        C = k_CKH.shape[0]
        scores_BKGQC = _capped(einsum.dot("BQKGH,CKH->BKGQC", q_BQKGH, k_CKH), spec)
        seen = context.prefix_mask(C)
        if seen is not None:
            scores_BKGQC = jnp.where(seen, scores_BKGQC, HIDDEN)
        joined = jnp.concatenate([scores_BKGQC, scores_BKGQT], axis=-1)
        p = jax.nn.softmax(joined, axis=-1).astype(v_BTKH.dtype)
        y_BQKGH = einsum.dot("BKGQC,CKH->BQKGH", p[..., :C], v_CKH)
        y_BQKGH = y_BQKGH + einsum.dot("BKGQT,BTKH->BQKGH", p[..., C:], v_BTKH)
    y_BQNH = constrain(y_BQKGH.astype(q_BQNH.dtype).reshape(B, Q, N, H), "BQNH")
    return context.tape.save(y_BQNH).value


def _capped(scores: jax.Array, spec: AttentionSpec) -> jax.Array:
    if spec.softcap is None:
        return scores
    return spec.softcap * jnp.tanh(scores / spec.softcap)


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
