"""Attention of long rows on a TPU, by jax's splash attention: scores never leave the core.

The shared prefix is put before the row's keys, and the causal mask is shifted by its length. The
result is that of `attention.attend`, except for rounding.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import on_each_device
from prompteol_jax.ops import blockwise
from prompteol_jax.ops.attention import KeysValues, repeat_kv
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.rope import apply_rope
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
    return blockwise.beyond_causal(q.value, context, spec)


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
    """Attend every token to its row's tokens up to itself, and to the whole prefix.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    q_BTNH, k_BTKH, v_BTKH = q.value, repeat_kv(k.value), repeat_kv(v.value)
    if context.rope is not None:
        q_BTNH, k_BTKH = (apply_rope(x, context.rope) for x in (q_BTNH, k_BTKH))
    prefix = prefix and (repeat_kv(prefix[0]), repeat_kv(prefix[1]))
    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    inputs = (rows, (rows, rows), None if prefix is None else (heads, heads))
    run = on_each_device(functools.partial(_local, spec.scale, interpret), inputs, rows)
    return context.tape.save(run(q_BTNH, (k_BTKH, v_BTKH), prefix)).value


def _local(
    scale: float, interpret: bool, q_BTNH: jax.Array, own: tuple, prefix: KeysValues | None
) -> jax.Array:
    """Run the kernel over one device's rows and heads."""
    B, T, N, _ = q_BTNH.shape
    C = 0 if prefix is None else prefix[0].shape[0]
    if prefix is not None:
        whole = (jnp.broadcast_to(x, (B, *x.shape)) for x in prefix)
        own = tuple(jnp.concatenate(two, axis=1) for two in zip(whole, own, strict=True))
    q_BNTH = _heads_first(q_BTNH * scale)
    k_BKTH, v_BKTH = (_heads_first(x) for x in own)
    kernel = _kernel(N, q_BNTH.shape[2], k_BKTH.shape[2], C, interpret)
    y_BNTH = jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH)
    return y_BNTH[:, :, :T].swapaxes(1, 2)


def _heads_first(x: jax.Array) -> jax.Array:
    """Return `[B, N, T, H]`, the tokens padded to whole blocks; no query sees padded keys."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK), (0, 0), (0, 0))).swapaxes(1, 2)


def _kernel(N: int, queries: int, keys: int, C: int, interpret: bool) -> Any:
    causal = splash_attention_mask.CausalMask((queries, keys), offset=C)
    sizes: dict[str, Any] = {
        f"block_{name}": BLOCK
        for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    }
    return splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([causal] * N),
        block_sizes=splash_attention_kernel.BlockSizes(**sizes),
        interpret=interpret,
    )
