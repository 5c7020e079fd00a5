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
from prompteol_jax.ops.rope import Rope, apply_rope

BLOCK: Final = 512  # queries and keys of a block


def attend(
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    rope: Rope | None,
    prefix: KeysValues | None,
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attend to the own row and the prefix on one device; it has a backward pass.

    Args:
        qkv: queries, keys and values of the row, before rope.
        interpret: run the kernel's program step by step, on any device.
    """
    q_BTNH, k_BTKH, v_BTKH = qkv
    T, N = q_BTNH.shape[1:3]
    if rope is not None:
        q_BTNH, k_BTKH = (apply_rope(x, rope) for x in (q_BTNH, k_BTKH))
    k_BTKH, v_BTKH = causal.after_prefix((k_BTKH, v_BTKH), prefix)
    C = k_BTKH.shape[1] - T
    q_BNTH, k_BKTH, v_BKTH = map(_heads_first, (q_BTNH * scale, k_BTKH, v_BTKH))
    splash = _splash(N, q_BNTH.shape[2], k_BKTH.shape[2], C, interpret)
    return jax.vmap(splash)(q_BNTH, k_BKTH, v_BKTH)[:, :, :T].swapaxes(1, 2)


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
