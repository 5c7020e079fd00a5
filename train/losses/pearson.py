"""Pearson's correlation as a loss (Pcc-tuning)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from train.losses.cosine import cosine, everywhere
from train.losses.loss import Metrics


def pearson(
    a_BD: Float[Array, "B D"], b_BD: Float[Array, "B D"], *, score: Float[Array, "B"]
) -> tuple[Float[Array, ""], Metrics]:
    """Return 1 - r, with r the correlation of cosines and scores over the global batch.

    A batch of equal scores has no correlation: r is 0, and so is the gradient.

    Relations: the released code divides by an unbiased deviation in place of a biased one, so its
        r is smaller by (B - 1) / B.
    Source: Zhang et al. 2024 (Pcc-tuning).
    """
    r = correlation(cosine(a_BD, b_BD), everywhere(score))
    return 1 - r, {"pearson": r}


def correlation(x_B: Float[Array, "B"], y_B: Float[Array, "B"]) -> Float[Array, ""]:
    """Return Pearson's correlation; 0 where one of the two does not vary."""
    x_B, y_B = x_B - x_B.mean(), y_B - y_B.mean()
    product = jnp.square(x_B).sum() * jnp.square(y_B).sum()
    varies = product > 0
    return jnp.where(varies, (x_B * y_B).sum() * lax.rsqrt(jnp.where(varies, product, 1.0)), 0.0)
