"""InfoNCE over the global batch: every other row's texts are negatives.

Queries are the rows' anchors; documents are their positives, then their hard negatives. A direction
says which scores a row's softmax is over; its numerator is always the score of query and positive.

    query-doc     the query against all documents; the paper's loss is this one alone
    doc-query     the positive against all queries
    query-query   the query against the other queries
    doc-doc       the positive against the documents of other rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompteol_jax.mesh import constrain
from train.losses.blockwise import Alternatives, Anchors, Masks, log_sum_exp
from train.losses.cosine import unit
from train.losses.loss import Metrics

TEMPERATURE: Final = 0.05
MARGIN: Final = 0.1
FORWARD: Final = ("query-doc",)
BOTH: Final = ("query-doc", "doc-query")
ALL: Final = ("query-doc", "doc-query", "query-query", "doc-doc")

Partition = Literal["joint", "each"]


def infonce(
    anchor_BD: Float[Array, "B D"],
    positive_BD: Float[Array, "B D"],
    *negatives_BD: Float[Array, "B D"],
    temperature: float = TEMPERATURE,
    directions: Sequence[str] = FORWARD,
    partition: Partition = "joint",
    margin: float | None = None,
    text: Int[Array, "B columns 2"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Return InfoNCE over in-batch positives and hard negatives, in float32.

    The matrix of scores is never whole on any device.

    Args:
        partition: `joint`, one softmax over the scores of all directions; `each`, one a direction,
            whose losses are averaged.
        margin: alternatives whose cosine is higher than that of the row's own pair by more than
            this are left out, as probable positives.
        text: hashes of the rows' texts; alternatives of the same text as the row's anchor or
            positive are left out.

    Math: -log softmax_a(cos(anchor_b, alternative_a) / temperature)[a = b], mean over b; the
        alternatives are all positives of the global batch, then all hard negatives.
    Returns: the mean loss in nats, and `accuracy`, the share of anchors whose own positive has the
        highest score of all documents.
    Relations: SimCSE's supervised loss; with directions, sentence-transformers'
        MultipleNegativesRankingLoss; with masks, that of Qwen3 Embedding (Zhang et al. 2025).
    Source: Jiang et al. 2024, section 3.3; temperature and direction as in the released code.
    """
    unit_BD = constrain(unit(anchor_BD) / temperature, "BD")
    own_BD = unit(positive_BD)
    unit_AD = jnp.concatenate([own_BD, *map(unit, negatives_BD)]) if negatives_BD else own_BD
    own_B = (unit_BD * own_BD).sum(1)
    documents_AD = constrain(unit_AD, "BD")
    limit_B = None if margin is None else jax.lax.stop_gradient(own_B) + margin / temperature
    masks = partial(masks_of, limit_B=limit_B, text=text)
    lse_B, best_B = log_sum_exp(
        unit_BD, documents_AD, masks("query-doc", len(unit_BD), len(unit_AD))
    )
    if len(directions) > 1:
        others = _others(unit_BD, own_BD, documents_AD, directions, masks, temperature)
        lse_B = _together(jnp.stack([lse_B, *others]), partition)
    correct_B = best_B == jnp.arange(len(best_B))
    return (lse_B - own_B).mean(), {"accuracy": correct_B.astype(jnp.float32).mean()}


def _others(
    unit_BD: Float[Array, "B D"],
    own_BD: Float[Array, "B D"],
    documents_AD: Float[Array, "A D"],
    directions: Sequence[str],
    masks: Callable[..., Masks | None],
    temperature: float,
) -> list[Float[Array, "B"]]:
    """Return the logarithm of the denominator in each direction but the first."""
    queries_BD = constrain(unit_BD * temperature, "BD")
    positives_BD = constrain(own_BD / temperature, "BD")
    sides = {
        "doc-query": (positives_BD, queries_BD),
        "query-query": (unit_BD, queries_BD),
        "doc-doc": (positives_BD, documents_AD),
    }
    return [
        log_sum_exp(x_BD, y_AD, masks(direction, len(x_BD), len(y_AD)))[0]
        for direction, (x_BD, y_AD) in sides.items()
        if direction in directions
    ]


def _together(sums_nB: Float[Array, "n B"], partition: Partition) -> Float[Array, "B"]:
    """Return the logarithm of the denominator, given that of each direction."""
    return sums_nB.mean(0) if partition == "each" else jax.nn.logsumexp(sums_nB, axis=0)


def masks_of(
    direction: str,
    B: int,
    A: int,
    *,
    limit_B: Float[Array, "B"] | None = None,
    text: Int[Array, "B columns 2"] | None = None,
) -> Masks | None:
    """Return what the anchors leave out of A alternatives in a direction; None for nothing.

    Alternatives come in columns of B rows. A text is never its own alternative, and no document is
    one of another document of its row.
    """
    same_kind = direction in ("query-query", "doc-doc")
    if not same_kind and limit_B is None and text is None:
        return None
    number_A = jnp.arange(A)
    none_A = jnp.full(A, -1)
    own_A = none_A if same_kind else jnp.where(number_A < B, number_A, -1)
    out_A = number_A % B if same_kind else none_A
    if text is None:
        return Anchors(limit_B=limit_B), Alternatives(own_A, out_A)
    columns = text[:, :1] if direction.endswith("query") else text[:, 1:]
    text_A2 = jnp.swapaxes(columns, 0, 1).reshape(A, 2)
    return Anchors(text[:, :2], limit_B), Alternatives(own_A, out_A, text_A2)
