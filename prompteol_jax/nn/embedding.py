"""Word embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from prompteol_jax.nn.parameters import Placeholders
from prompteol_jax.ops import bits


class Embedding(nnx.Module):
    """Rows of a table, one for each token.

    Args:
        scale: factor of the rows, rounded to their dtype, as in Gemma; None for none.
    """

    def __init__(self, make: Placeholders, *, scale: float | None = None):
        self.tokens = make.matrix("VD")
        self.scale = scale

    def __call__(self, ids_BT: jax.Array, position_BT: jax.Array) -> jax.Array:
        x_BTD = bits.lookup(self.tokens[...], ids_BT)
        return x_BTD if self.scale is None else x_BTD * jnp.asarray(self.scale, x_BTD.dtype)
