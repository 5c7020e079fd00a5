"""Distillation: from a teacher's vectors, or from a teacher's scores of a row's documents."""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompteol_jax.errors import UserError
from train.losses.cosine import cosine
from train.losses.loss import Metrics

TEMPERATURE: Final = 1.0


def distill_vectors(
    *columns_BD: Float[Array, "B D"], teacher: Float[Array, "B ..."]
) -> tuple[Float[Array, ""], Metrics]:
    """Return the mean of 1 - cos(vector, teacher's vector), over rows and columns.

    Args:
        teacher: vectors of the texts of each row, or one of all of them; a teacher of fewer numbers
            than the model is compared with the first ones.
    Relations: sentence-transformers' EmbedDistillLoss with the cosine as its distance.
    """
    teacher = teacher if teacher.ndim == 3 else teacher[:, None]
    d = teacher.shape[2]
    if teacher.shape[1] not in (1, len(columns_BD)) or d > columns_BD[0].shape[1]:
        raise UserError(
            f"the teacher has {teacher.shape[1]} vectors of {d} numbers a row; the model has "
            f"{len(columns_BD)} of {columns_BD[0].shape[1]}: give 1 or {len(columns_BD)} a row, "
            "none longer than the model's"
        )
    cosines = [
        cosine(z_BD[:, :d], teacher[:, n % teacher.shape[1]]) for n, z_BD in enumerate(columns_BD)
    ]
    mean = jnp.stack(cosines).mean()
    return 1 - mean, {"teacher_cosine": mean}


def distill_scores(
    query_BD: Float[Array, "B D"],
    *documents_BD: Float[Array, "B D"],
    score: Float[Array, "B ..."],
    temperature: float = TEMPERATURE,
) -> tuple[Float[Array, ""], Metrics]:
    """Return the divergence of our scores of a row's documents from the teacher's.

    Math: temperature^2 KL(softmax(score / temperature) || softmax(cos / temperature)), mean over
        rows; the documents are the row's positive and hard negatives, in this order.
    Relations: sentence-transformers' DistillKLDivLoss, of cosines.
    """
    _check_scores(len(documents_BD), score)
    cos = jnp.stack([cosine(query_BD, z_BD) for z_BD in documents_BD], axis=1)
    ours, theirs = (jax.nn.log_softmax(x / temperature) for x in (cos, score))
    divergence = (jnp.exp(theirs) * (theirs - ours)).sum(1).mean()
    agree = (cos.argmax(1) == score.argmax(1)).astype(jnp.float32).mean()
    return temperature**2 * divergence, {"agreement": agree}


def distill_margins(
    query_BD: Float[Array, "B D"],
    *documents_BD: Float[Array, "B D"],
    score: Float[Array, "B ..."],
) -> tuple[Float[Array, ""], Metrics]:
    """Return the mean squared difference of our margins and the teacher's.

    Math: a margin is the score of the positive less that of a hard negative; ours are of cosines.
    Source: Hofstätter et al. 2020 (MarginMSE).
    """
    _check_scores(len(documents_BD), score)
    own, *others = (cosine(query_BD, z_BD) for z_BD in documents_BD)
    ours = jnp.stack([own - other for other in others], axis=1)
    theirs = score[:, :1] - score[:, 1:]
    error = jnp.square(ours - theirs).mean()
    return error, {"margin": ours.mean()}


def _check_scores(documents: int, score: jax.Array) -> None:
    found = 1 if score.ndim == 1 else score.shape[1]
    if documents < 2 or found != documents:
        raise UserError(
            f"{found} scores a row for {documents} documents (positive and hard negatives): give "
            "`score` as a list with one for each, and two documents at least"
        )
