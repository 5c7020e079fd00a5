"""Rotary positions (RoPE): the pairs (i, i + H/2) of a head are rotated by their position's angle.

Source: Su et al. 2021 (RoFormer), in the half-split order of Hugging Face's LLaMA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rope = tuple[Float[Array, "_ _ h"], Float[Array, "_ _ h"]]  # cosines and sines of tokens


def rope_table(
    position: Int[Array, "..."], inverse_frequency: Float[Array, "h"], magnitude: float = 1.0
) -> tuple[Float[Array, "... h"], Float[Array, "... h"]]:
    """Return cosine and sine of every position times every frequency, float32.

    Args:
        magnitude: factor of both.
    """
    angle = position[..., None].astype(jnp.float32) * inverse_frequency
    return magnitude * jnp.cos(angle), magnitude * jnp.sin(angle)


def rope_of_rows(rope: Rope | None, B: int) -> Rope | None:
    """Return the tables for each of B rows, which may share one."""
    if rope is None:
        return None
    cos, sin = (jnp.broadcast_to(x, (B, *x.shape[1:])) for x in rope)
    return cos, sin


def apply_rope(x_BTNH: Float[Array, "B T N H"], rope: Rope) -> Float[Array, "B T N H"]:
    """Rotate every head by its token's angles; float32 inside.

    A table of h < H/2 pairs rotates the first 2h features of each head.
    """
    width = 2 * rope[0].shape[-1]
    table = [a[:, :, None, :] for a in rope]
    if width == x_BTNH.shape[-1]:
        return _rotated(x_BTNH, *table, axis=-1)
    rotated = _rotated(x_BTNH[..., :width], *table, axis=-1)
    return jnp.concatenate([rotated, x_BTNH[..., width:]], axis=-1)


def apply_rope_in_kernel(x_HT: Any, refs: Sequence[Any], *, back: bool = False) -> Any:
    """Rotate one head, features by tokens, inside a kernel's program.

    Args:
        refs: cosines and sines, each `[1, H/2, T]`; nothing leaves `x_HT` as it is.
        back: rotate back, as the gradient is.
    """
    if not refs:
        return x_HT
    cos, sin = (ref[0] for ref in refs)
    return _rotated(x_HT, cos, -sin if back else sin, axis=0)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array, axis: int) -> jax.Array:
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=axis)
    rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=axis)
    return rotated.astype(x.dtype)
