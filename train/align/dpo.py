"""Direct preference optimization."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from train.losses.loss import Metrics


def dpo(
    policy_B2: Float[Array, "B 2"], reference_B2: Float[Array, "B 2"], *, beta: float
) -> tuple[Float[Array, ""], Metrics]:
    """Return the loss of log-probabilities of each row's chosen and rejected answer.

    Math: a reward is beta (log policy - log reference); the loss is -log sigmoid(reward of the
        chosen answer - reward of the rejected one), mean over rows.
    Source: Rafailov et al. 2023, equation 7.
    """
    reward_B2 = beta * (policy_B2 - reference_B2)
    margin_B = reward_B2[:, 0] - reward_B2[:, 1]
    return -jax.nn.log_sigmoid(margin_B).mean(), {
        "accuracy": (margin_B > 0).mean(dtype=margin_B.dtype),
        "margin": margin_B.mean(),
        "chosen_reward": reward_B2[:, 0].mean(),
        "rejected_reward": reward_B2[:, 1].mean(),
        "chosen_log_prob": policy_B2[:, 0].mean(),
    }
