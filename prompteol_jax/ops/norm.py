"""Norms of tokens.

y = (x - mean) / sqrt(variance + eps) * scale + bias      over D; for RMS without the mean
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prompteol_jax.ops import platform
from prompteol_jax.ops.scan import NONE, Saved, Tape


class Norm(NamedTuple):
    """A kind of norm.

    Attributes:
        centered: the mean is subtracted.
    """

    eps: float
    centered: bool


def normalize(
    norm: Norm, x: jax.Array, scale: jax.Array, bias: jax.Array | None, tape: Tape = NONE
) -> jax.Array:
    """Return the norm of x over its last axis in its dtype, statistics in float32."""
    return scaled(x, [tape.save(m).value for m in moments(norm, x)], scale, bias)


def fork(
    norm: Norm, x: Saved, scale: jax.Array, bias: jax.Array | None, tape: Tape = NONE
) -> tuple[jax.Array, jax.Array]:
    """Return the norm of x, and x for the residual connection."""
    return normalize(norm, x.value, scale, bias, tape), x.value


def moments(norm: Norm, x: jax.Array) -> list[jax.Array]:
    """Return the factor of x, and before it, where centered, the mean that is subtracted."""
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).mean(-1, keepdims=True)
    if not norm.centered:
        return [jax.lax.rsqrt(square + norm.eps)]
    mean = wide.mean(-1, keepdims=True)
    if platform.current() == "tpu":  # both moments in one pass, joined to the product that made x
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return [mean, jax.lax.rsqrt(variance + norm.eps)]


def scaled(
    x: jax.Array, moments: list[jax.Array], scale: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Return the norm of x by its moments."""
    *mean, inverse = moments
    wide = x.astype(jnp.float32)
    y = (wide - mean[0] if mean else wide) * inverse * scale
    return (y if bias is None else y + bias).astype(x.dtype)
