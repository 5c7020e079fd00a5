"""nf4 (Dettmers et al. 2023): from codes and the scales of their blocks to weights; the reference.

Each weight is one of 16 levels times the scale of its block of 64.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prompteol_jax.ops.scan import Saved

BLOCK: Final = 64  # weights that share a scale

# Quantiles of the normal distribution; QLoRA (Dettmers et al. 2023), appendix E.
LEVELS: Final = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def dequantize(
    codes: Saved, scales: Float[Array, "rows blocks"], dtype: Any
) -> Float[Array, "rows columns"]:
    """Return the weights, computed in float32.

    Args:
        codes: uint8 [rows, columns / 2], the first of two weights in the high bits.
    """
    pairs = jnp.stack([codes.value >> 4, codes.value & 15], axis=-1)
    weights = _level(pairs.reshape(*scales.shape, BLOCK)) * scales[..., None]
    return weights.reshape(len(scales), -1).astype(dtype)


def _level(codes: jax.Array) -> jax.Array:
    """Look codes up in LEVELS, bit by bit: a gather of single numbers is slow on accelerators."""
    chosen: list[Any] = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        pairs = zip(chosen[::2], chosen[1::2], strict=True)
        chosen = [jnp.where(is_set, high, low) for low, high in pairs]
    return chosen[0]
