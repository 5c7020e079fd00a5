"""Plain causal attention of long rows by the kernels of other libraries.

The shared prefix is put before the row's keys. The result is that of `attention.attend`, except for
rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import on_each_device
from prompteol_jax.ops.attention import KeysValues, repeat_kv, repeat_prefix
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.rope import apply_rope
from prompteol_jax.ops.scan import Saved

# From queries [B, T, N, H], and keys and values [B, C + T, K, H], to what T queries read.
Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def beyond_causal(q_BTNH: jax.Array, context: AttentionContext, spec: AttentionSpec) -> str | None:
    """Return what these rows need beyond causal attention in half precision; None for nothing.

    Kernels of others for long rows take neither packed rows nor a window that changes by layer.
    """
    if context.query_BQ is not None:
        return "queries are not all tokens"
    if q_BTNH.dtype == jnp.float32:
        return "not supported: float32"
    absent = {
        "bidirectional": context.end_BT,
        "packed rows": context.segment_start_BT,
        "padded prefix": context.prefix_mask_C,
        "window": context.window,
        "softcap": spec.softcap,
    }
    given = [name for name, value in absent.items() if value is not None]
    return f"not supported: {', '.join(given)}" if given else None


def after_prefix(
    own: tuple[jax.Array, jax.Array], prefix: KeysValues | None
) -> tuple[jax.Array, jax.Array]:
    """Return keys and values, `[B, T, K, H]`, after those of the prefix."""
    if prefix is None:
        return own
    first, second = (
        jnp.concatenate([jnp.broadcast_to(c, (len(x), *c.shape)), x], axis=1)
        for c, x in zip(prefix, own, strict=True)
    )
    return first, second


def attend(
    kernel: Kernel,
    qkv: tuple[Saved, Saved, Saved],
    context: AttentionContext,
    prefix: KeysValues | None,
) -> Float[Array, "B T N H"]:
    """Attend every token to its row's tokens up to itself, and to the whole prefix.

    Args:
        kernel: function of one device's rows and heads.
        qkv: queries, keys and values of the row, before rope.
    """
    q_BTNH, k_BTKH, v_BTKH = qkv[0].value, *(repeat_kv(x.value) for x in qkv[1:])
    if context.rope is not None:
        q_BTNH, k_BTKH = (apply_rope(x, context.rope) for x in (q_BTNH, k_BTKH))
    prefix = repeat_prefix(prefix)

    def of_device(q_BTNH: jax.Array, own: tuple, prefix: KeysValues | None) -> jax.Array:
        return kernel(q_BTNH, *after_prefix(own, prefix))

    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    inputs = (rows, (rows, rows), None if prefix is None else (heads, heads))
    run = on_each_device(of_device, inputs, rows)
    return context.tape.save(run(q_BTNH, (k_BTKH, v_BTKH), prefix)).value
