"""Attention of long rows on a GPU, by cuDNN's fused kernel: scores never leave the chip.

The shared prefix is put before the row's keys, and as many empty queries before the row's, so that
the mask is the plain causal one. The result is that of `attention.attend`, except for rounding.
"""

from __future__ import annotations

import functools
from typing import Final, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import on_each_device
from prompteol_jax.ops import blockwise
from prompteol_jax.ops.attention import KeysValues, repeat_kv
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.rope import apply_rope
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
    return blockwise.beyond_causal(q.value, context, spec)


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
    """Attend every token to its row's tokens up to itself, and to the whole prefix.

    Args:
        implementation: `xla` computes the same on any device, with all scores in memory.
    """
    q_BTNH, k_BTKH, v_BTKH = q.value, repeat_kv(k.value), repeat_kv(v.value)
    if context.rope is not None:
        q_BTNH, k_BTKH = (apply_rope(x, context.rope) for x in (q_BTNH, k_BTKH))
    prefix = prefix and (repeat_kv(prefix[0]), repeat_kv(prefix[1]))
    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    inputs = (rows, (rows, rows), None if prefix is None else (heads, heads))
    run = on_each_device(functools.partial(_local, spec.scale, implementation), inputs, rows)
    return context.tape.save(run(q_BTNH, (k_BTKH, v_BTKH), prefix)).value


def _local(
    scale: float,
    implementation: Literal["cudnn", "xla"],
    q_BTNH: jax.Array,
    own: tuple,
    prefix: KeysValues | None,
) -> jax.Array:
    """Run the kernel over one device's rows and heads."""
    C = 0 if prefix is None else prefix[0].shape[0]
    if prefix is not None:
        whole = (jnp.broadcast_to(x, (len(q_BTNH), *x.shape)) for x in prefix)
        own = tuple(jnp.concatenate(two, axis=1) for two in zip(whole, own, strict=True))
    q_BTNH = jnp.pad(q_BTNH, ((0, 0), (C, 0), (0, 0), (0, 0)))
    k_BTKH, v_BTKH = own
    y_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, scale=scale, is_causal=True, implementation=implementation
    )
    return y_BTNH[:, C:]
