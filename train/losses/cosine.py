"""Lengths and cosines of vectors, with finite gradients at zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompteol_jax.mesh import constrain


def unit(z_BD: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Scale rows to length one."""
    square_B = jnp.square(z_BD).sum(-1, keepdims=True)
    return z_BD * jax.lax.rsqrt(jnp.maximum(square_B, 1e-16))


def cosine(x_BD: Float[Array, "B D"], y_BD: Float[Array, "B D"]) -> Float[Array, "B"]:
    """Return the cosine of each pair of rows; every device holds all of them."""
    return everywhere((unit(x_BD) * unit(y_BD)).sum(-1))


def everywhere(x_A: Float[Array, "A"]) -> Float[Array, "A"]:
    """Gather one number a row onto every device: they are few, and some losses sort them."""
    return constrain(x_A, "A")
