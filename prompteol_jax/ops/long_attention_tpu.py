"""Attention of long rows on a TPU, by jax's splash attention: scores never leave the core.

The causal mask is shifted by the length of the prefix.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jaxtyping import Array, Float

from prompteol_jax.ops import causal
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.scan import Saved

BLOCK: Final = 512  # queries and keys of a block


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
    """Attend to the own row and the prefix; see `causal.attend`.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """

    def kernel(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> jax.Array:
        T, N = q_BTNH.shape[1:3]
        C = k_BTKH.shape[1] - T
        q_BNTH, k_BKTH, v_BKTH = map(_heads_first, (q_BTNH * spec.scale, k_BTKH, v_BTKH))
        splash = _splash(N, q_BNTH.shape[2], k_BKTH.shape[2], C, interpret)
        return jax.vmap(splash)(q_BNTH, k_BKTH, v_BKTH)[:, :, :T].swapaxes(1, 2)

    return causal.attend(kernel, (q, k, v), context, prefix)


def _heads_first(x: jax.Array) -> jax.Array:
    """Return `[B, N, T, H]`, the tokens padded to whole blocks; no query sees padded keys."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK), (0, 0), (0, 0))).swapaxes(1, 2)


def _splash(N: int, queries: int, keys: int, C: int, interpret: bool) -> Any:
    mask = splash_attention_mask.CausalMask((queries, keys), offset=C)
    sizes: dict[str, Any] = {
        f"block_{name}": BLOCK
        for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    }
    return splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * N),
        block_sizes=splash_attention_kernel.BlockSizes(**sizes),
        interpret=interpret,
    )
