"""CSE-SFP: two positions of one prompt are the two views of a sentence; no labels are needed."""

from __future__ import annotations

from jaxtyping import Array, Float

from train.losses.infonce import TEMPERATURE, infonce
from train.losses.loss import Metrics


def sfp(
    middle_BD: Float[Array, "B D"],
    last_BD: Float[Array, "B D"],
    *,
    temperature: float = TEMPERATURE,
) -> tuple[Float[Array, ""], Metrics]:
    """Return InfoNCE of the last token's vector against those at the middle of the suffix.

    Source: Zhang et al. 2025 (CSE-SFP), section 3: the vector of the last token is the anchor, that
        of the token which ends the suffix's first part its positive.
    """
    return infonce(last_BD, middle_BD, temperature=temperature)
