"""Word embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from prompteol_jax.mesh import gathered
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
        self.fsdp = make.fsdp

    def __call__(self, ids_BT: jax.Array, position_BT: jax.Array) -> jax.Array:
        x_BTD = look_up(self.tokens[...], "VD", ids_BT, fsdp=self.fsdp)
        return x_BTD if self.scale is None else x_BTD * jnp.asarray(self.scale, x_BTD.dtype)


def look_up(table: jax.Array, dims: str, index: jax.Array, *, fsdp: bool) -> jax.Array:
    """Return rows of a table.

    Args:
        dims: axes of the table, the rows first; fsdp: whether it is sharded over data.
    """
    return bits.lookup(gathered(table, dims) if fsdp else table, index)
