"""CoSENT: pairs are ordered as their scores are."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.losses.cosine import cosine, everywhere
from train.losses.loss import Metrics
from train.losses.pearson import correlation

TEMPERATURE: Final = 0.05


def cosent(
    a_BD: Float[Array, "B D"],
    b_BD: Float[Array, "B D"],
    *,
    score: Float[Array, "B"],
    temperature: float = TEMPERATURE,
) -> tuple[Float[Array, ""], Metrics]:
    """Return CoSENT of the cosines; only the order of the scores counts.

    Math: log(1 + sum exp((cos_j - cos_i) / temperature)) over all i, j of the global batch with
        score_i > score_j.
    Source: Huang et al. 2024 (CoSENT).
    """
    cos_B = cosine(a_BD, b_BD)
    loss = ordered(cos_B / temperature, score)
    return loss, {"pearson": correlation(cos_B, everywhere(score))}


def ordered(similarity_B: Float[Array, "B"], score: Float[Array, "B"]) -> Float[Array, ""]:
    """Return log(1 + sum exp(s_j - s_i)) over all pairs with score_i > score_j.

    Sorted by score, the higher ones of each row all follow it: their sum is a cumulative one, and
    no matrix over pairs is made.
    """
    score_B = everywhere(score)
    order_B = jnp.argsort(score_B)
    score_B, s_B = score_B[order_B], everywhere(similarity_B)[order_B]
    higher_B = jnp.searchsorted(score_B, score_B, side="right")
    after_B = jax.lax.cumlogsumexp(-s_B, reverse=True)
    # Rows of the highest score have none above them.
    after_B = jnp.append(after_B, -jnp.inf)[higher_B]
    return jax.nn.logsumexp(jnp.append(s_B + after_B, 0.0))
