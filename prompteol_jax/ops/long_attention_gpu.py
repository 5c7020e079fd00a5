"""Attention of long rows on a GPU, by cuDNN's fused kernel: scores never leave the chip.

As many empty queries as the prefix has tokens are put before the row's, so that the mask is the
plain causal one.
"""

from __future__ import annotations

from typing import Final, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompteol_jax.ops import causal
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.scan import Saved

WIDEST: Final = 128  # head that every generation's kernel takes


def supports(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: KeysValues | None,
) -> str | None:
    """Return why the kernel cannot run: it takes rows of one text in bfloat16, heads up to 128."""
    H = q.value.shape[-1]
    if H > WIDEST or H % 8:
        return f"not supported: heads of {H}, no multiple of 8 up to {WIDEST}"
    return causal.beyond_causal(q.value, context, spec)


def attend(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: KeysValues | None = None,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """Attend to the own row and the prefix; see `causal.attend`.

    Args:
        implementation: `xla` computes the same on any device, with all scores in memory.
    """

    def kernel(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
        C = k_BTKH.shape[1] - q_BTNH.shape[1]
        q_BTNH = jnp.pad(q_BTNH, ((0, 0), (C, 0), (0, 0), (0, 0)))
        y_BTNH = jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, scale=spec.scale, is_causal=True, implementation=implementation
        )
        return y_BTNH[:, C:]

    return causal.attend(kernel, (q, k, v), context, prefix)
