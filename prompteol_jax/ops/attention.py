"""Causal attention of right-padded or packed rows over themselves and a prefix that all rows share.

The prefix has no batch axis: its scores are computed against one copy of its keys and joined with
the row's own scores, so the keys are never broadcast over the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompteol_jax.mesh import axis_size, constrain
from prompteol_jax.ops import attention_tpu, einsum, platform, scan

Angles = tuple[Float[Array, "_ _ h"], Float[Array, "_ _ h"]]  # cosines and sines of tokens
_HIDDEN = -1e30  # finite: a softmax over a row of it is uniform, not NaN


def visible(
    T: int,
    query_BQ: Int[Array, "B Q"] | None = None,
    start_BT: Int[Array, "B T"] | None = None,
    head: int = 0,
) -> Bool[Array, "b q T"]:
    """Say which tokens of its row each query sees: none after itself, none before its sentence.

    Args:
        query_BQ: places of the queries in their rows; None for every token.
        start_BT: place of the first token of each token's sentence, in packed rows; None where
            every row holds one sentence. Tokens after the last one see what they like: nobody
            looks at them.
        head: tokens at the head of every packed row that all its sentences see too.
    """
    token_T = jnp.arange(T)
    place_BQ = token_T[None, :] if query_BQ is None else query_BQ
    mask_BQT = token_T[None, None, :] <= place_BQ[:, :, None]
    if start_BT is None:
        return mask_BQT
    start_BQ = start_BT if query_BQ is None else jnp.take_along_axis(start_BT, query_BQ, axis=1)
    own_BQT = token_T[None, None, :] >= start_BQ[:, :, None]
    return mask_BQT & (own_BQT | (token_T < head))


def attend(
    q_BQNH: Float[Array, "B Q N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    mask_BQT: Bool[Array, "b q T"],
    prefix: tuple[Float[Array, "C K H"], Float[Array, "C K H"]] | None = None,
    real_C: Bool[Array, "C"] | None = None,
    start_BT: Int[Array, "B T"] | None = None,
    head: int = 0,
    turn: tuple[Angles, Angles] | None = None,
) -> Float[Array, "B Q N H"]:
    """Attend to the own row and the prefix: grouped heads, softmax in float32.

    Args:
        turn: angles by which the row's queries and keys are rotated first.
        real_C: which tokens of a padded prefix are real; None where all are.
        start_BT, head: what `mask_BQT` was made of, where the rows are packed and every token a
            query: a TPU then runs one kernel instead, which spares it the scores' way through HBM.
    """
    B, Q, N, H = q_BQNH.shape
    k_BTKH, v_BTKH = repeat_kv(k_BTKH), repeat_kv(v_BTKH)
    prefix = prefix and tuple(repeat_kv(a) for a in prefix)
    fused = start_BT is not None and real_C is None and platform.current() == "tpu"
    if fused and attention_tpu.applies(Q):
        angles = None if turn is None else turn[1]
        return attention_tpu.attend(q_BQNH, k_BTKH, v_BTKH, start_BT, prefix, angles, head=head)
    if turn is not None:
        q_BQNH, k_BTKH = rotate(q_BQNH, turn[0]), rotate(k_BTKH, turn[1])
    K = k_BTKH.shape[2]
    q_BQKGH = (q_BQNH * H**-0.5).reshape(B, Q, K, N // K, H)
    scores_BKGQT = einsum.dot("BQKGH,BTKH->BKGQT", q_BQKGH, k_BTKH)
    scores_BKGQT = jnp.where(mask_BQT[:, None, None], scores_BKGQT, _HIDDEN)
    if prefix is None:
        p_BKGQT = jax.nn.softmax(scores_BKGQT, axis=-1).astype(v_BTKH.dtype)
        y_BQKGH = einsum.dot("BKGQT,BTKH->BQKGH", p_BKGQT, v_BTKH)
    else:
        k_CKH, v_CKH = prefix
        C = k_CKH.shape[0]
        scores_BKGQC = einsum.dot("BQKGH,CKH->BKGQC", q_BQKGH, k_CKH)
        if real_C is not None:
            scores_BKGQC = jnp.where(real_C, scores_BKGQC, _HIDDEN)
        joined = jnp.concatenate([scores_BKGQC, scores_BKGQT], axis=-1)
        p = jax.nn.softmax(joined, axis=-1).astype(v_BTKH.dtype)
        y_BQKGH = einsum.dot("BKGQC,CKH->BQKGH", p[..., :C], v_CKH)
        y_BQKGH = y_BQKGH + einsum.dot("BKGQT,BTKH->BQKGH", p[..., C:], v_BTKH)
    y_BQNH = constrain(y_BQKGH.astype(q_BQNH.dtype).reshape(B, Q, N, H), "BQNH")
    return scan.keep(y_BQNH)


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


def join_heads(y_BQNH: Float[Array, "B Q N H"]) -> Float[Array, "B Q I"]:
    """Let all heads be one axis, as the output projection takes them."""
    B, Q, N, H = y_BQNH.shape
    return constrain(y_BQNH.reshape(B, Q, N * H), "BQI")


def rotary_angles(
    place: Int[Array, "..."], inverse_frequency: Float[Array, "h"]
) -> tuple[Float[Array, "... h"], Float[Array, "... h"]]:
    """Cosine and sine of every place times every frequency, float32."""
    angle = place[..., None].astype(jnp.float32) * inverse_frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: Float[Array, "B T N H"], cos_sin: Angles) -> Float[Array, "B T N H"]:
    """Turn the pairs (i, i + H/2) of every head by their angle; float32 inside.

    Source: Su et al. 2021 (RoFormer), in the half-split order of Hugging Face's LLaMA.
    """
    cos, sin = (a[:, :, None, :] for a in cos_sin)
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)
