"""AnglE: CoSENT over angles in complex space, whose gradient does not fade near cosines of 1."""

from __future__ import annotations

from typing import Final

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.losses.cosent import ordered
from train.losses.cosine import cosine, everywhere, unit
from train.losses.loss import Metrics
from train.losses.pearson import correlation

TEMPERATURE: Final = 0.05


def angle(
    a_BD: Float[Array, "B D"],
    b_BD: Float[Array, "B D"],
    *,
    score: Float[Array, "B"],
    temperature: float = TEMPERATURE,
) -> tuple[Float[Array, ""], Metrics]:
    """Return the loss of CoSENT with the absolute sum of cosine and sine in place of the cosine.

    Math: with the halves of a vector as real and imaginary parts, re and im of unit vectors,
        s = |a · b + im_a · re_b - re_a · im_b|. A vector of odd length gets a last number 0.
    Source: Li and Li 2023 (AnglE), section 3.3; form and scale as in sentence-transformers.
    """
    (re_a, im_a), (re_b, im_b) = (jnp.split(_even(unit(z)), 2, axis=1) for z in (a_BD, b_BD))
    sine_B = everywhere((im_a * re_b - re_a * im_b).sum(1))
    cos_B = cosine(a_BD, b_BD)
    loss = ordered(jnp.abs(cos_B + sine_B) / temperature, score)
    return loss, {"pearson": correlation(cos_B, everywhere(score))}


def _even(z_BD: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return jnp.pad(z_BD, ((0, 0), (0, z_BD.shape[1] % 2)))
