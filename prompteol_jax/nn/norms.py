"""Norms of the residual stream, or of each head."""

from __future__ import annotations

import jax
from flax import nnx

from prompteol_jax.nn.parameters import Placeholders
from prompteol_jax.ops import norm, select
from prompteol_jax.ops.scan import NONE, Saved, Tape


class LayerNorm(nnx.Module):
    """Layer normalization with scale and bias.

    y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias
    """

    def __init__(self, make: Placeholders, *, eps: float = 1e-5):
        self.scale = make.vector("D")
        self.bias = make.vector("D")
        self.kind = norm.Norm(eps, centered=True)

    def __call__(self, x: jax.Array, tape: Tape = NONE) -> jax.Array:
        return norm.normalize(self.kind, x, self.scale[...], self.bias[...], tape)

    def fork(self, x: Saved, tape: Tape = NONE) -> tuple[jax.Array, jax.Array]:
        """Return the norm of x, and x for the residual connection."""
        return select.fork_norm(self.kind, x, self.scale[...], self.bias[...], tape)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization with a scale.

    y = x / sqrt(mean(x^2) + eps) * scale

    Args:
        dims: the axis that is normalized: `D`; `H` for a norm of each head; `I` or `J` for one of
            all query heads or key heads joined.
        plus_one: multiply by 1 + scale instead, as Gemma does.
    """

    def __init__(self, make: Placeholders, *, eps: float, dims: str = "D", plus_one: bool = False):
        self.dims = dims
        self.scale = make.vector(dims)
        self.kind = norm.Norm(eps, centered=False)
        self.plus_one = plus_one

    def __call__(self, x: jax.Array, tape: Tape = NONE) -> jax.Array:
        return norm.normalize(self.kind, x, self._factor(), None, tape)

    def fork(self, x: Saved, tape: Tape = NONE) -> tuple[jax.Array, jax.Array]:
        """Return the norm of x, and x for the residual connection."""
        return select.fork_norm(self.kind, x, self._factor(), None, tape)

    def _factor(self) -> jax.Array:
        return self.scale[...] + 1.0 if self.plus_one else self.scale[...]
