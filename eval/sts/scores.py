"""How an encoder's vectors become STS scores: cosines, correlations and their aggregation.

Scores are 100 times a correlation. As in the original harness, a task's score is Spearman over
its subsets joined into one list, and the average is that of the scores rounded to two decimals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Int

from eval.sts.tasks import Pairs, Task
from prompteol_jax.errors import NotFinite, UserError
from prompteol_jax.text import template

Cosines = Mapping[str, Sequence[Float64[np.ndarray, " _"]]]  # by task and subset


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into float32 vectors [n, D], one a text, in order."""

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


def evaluate_sts(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    clean: bool = True,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Score an encoder: `scores` by task and `average` (two decimals), and the whole `detail`.

    Raises: NotFinite as `task_cosines` and `score_task`.
    """
    cosines = task_cosines(encoder, tasks, clean=clean, progress=progress)
    return score_tasks(tasks, cosines)


def development_score(encoder: Encoder, pairs: Pairs, *, progress: bool | None = None) -> float:
    """Return 100 x Spearman of cleaned sentence pairs, unrounded: what training watches."""
    task = Task(pairs.name, (pairs,))
    cosines = task_cosines(encoder, [task], progress=progress)
    return score_task(task, cosines[task.name])["spearman"]["all"]


def task_cosines(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    clean: bool = True,
    progress: bool | None = None,
) -> dict[str, tuple[Float64[np.ndarray, " _"], ...]]:
    """Encode the distinct sentences of all tasks in one call and returns cosines by subset.

    Args:
        clean: Whether the original's punctuation rules are applied first.
        progress: Value for the encoder's argument of that name, unless None.

    Raises: NotFinite naming the sentence of a vector that is zero or not finite.
    """
    columns = [
        texts
        for task in tasks
        for pairs in task.subsets
        for texts in (pairs.texts_a, pairs.texts_b)
    ]
    texts, vectors, rows = encode_distinct(encoder, columns, clean=clean, progress=progress)
    _refuse_vectors("zero", texts, np.asarray(vectors.any(axis=1)))
    sides = iter(rows)
    return {
        task.name: tuple(cosine(vectors[next(sides)], vectors[next(sides)]) for _ in task.subsets)
        for task in tasks
    }


def encode_distinct(
    encoder: Encoder,
    columns: Sequence[Sequence[str]],
    *,
    clean: bool = True,
    progress: bool | None = None,
) -> tuple[list[str], Float[np.ndarray, "n D"], list[Int[np.ndarray, " _"]]]:
    """Encode the distinct texts of all columns in one call.

    Returns these texts, their vectors, and for each column the rows that its texts have there.
    `clean` and `progress` are those of `task_cosines`.

    Raises: NotFinite naming the text of a vector that is not finite.
    """
    row_of: dict[str, int] = {}

    def rows(texts: Sequence[str]) -> Int[np.ndarray, " _"]:
        given = map(template.clean_sentence, texts) if clean else texts
        return np.array([row_of.setdefault(text, len(row_of)) for text in given], np.int64)

    indices = [rows(texts) for texts in columns]
    texts = list(row_of)
    vectors = encoder.encode(texts, **({} if progress is None else {"progress": progress}))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise UserError(
            f"the encoder returned shape {vectors.shape} for {len(texts)} texts; "
            f"expected ({len(texts)}, D)"
        )
    _refuse_vectors("not finite", texts, np.asarray(np.isfinite(vectors).all(axis=1)))
    return texts, vectors, indices


def cosine(
    x_nD: Float[np.ndarray, "n D"], y_nD: Float[np.ndarray, "n D"]
) -> Float64[np.ndarray, " n"]:
    """Compute the cosine of each row of x with that of y, in float64.

    Half precision would overflow at a norm of 256 and round different cosines to ties.
    """
    x_nD, y_nD = x_nD.astype(np.float64), y_nD.astype(np.float64)
    norms = np.linalg.norm(x_nD, axis=1) * np.linalg.norm(y_nD, axis=1)
    return np.einsum("nD,nD->n", x_nD, y_nD) / norms


def score_task(task: Task, cosines: Sequence[Float64[np.ndarray, " _"]]) -> dict[str, Any]:
    """Score one task from the cosines of its subsets.

    `spearman` and `pearson` each hold `all` (subsets joined), `mean` over the subsets and
    `wmean` weighted by their pairs; `subsets` holds each subset's own. Nothing is rounded.

    Raises: NotFinite for cosines that are all equal, which have no rank correlation.
    """
    subsets = {
        pairs.name: {"pairs": len(pairs), "dropped": pairs.dropped}
        | _correlations(f"{task.name} {pairs.name}", pairs.gold, values)
        for pairs, values in zip(task.subsets, cosines, strict=True)
    }
    gold = np.concatenate([pairs.gold for pairs in task.subsets])
    joined = _correlations(task.name, gold, np.concatenate(cosines))
    weights = [subset["pairs"] for subset in subsets.values()]

    def aggregate(kind: str) -> dict[str, float]:
        values = [subset[kind] for subset in subsets.values()]
        weighted = float(np.average(values, weights=weights))
        return {"all": joined[kind], "mean": float(np.mean(values)), "wmean": weighted}

    return {
        "pairs": sum(weights),
        "dropped": sum(pairs.dropped for pairs in task.subsets),
        "spearman": aggregate("spearman"),
        "pearson": aggregate("pearson"),
        "subsets": subsets,
    }


def score_tasks(tasks: Sequence[Task], cosines: Cosines) -> dict[str, Any]:
    """Score tasks from their cosines, in the form of `evaluate_sts`."""
    detail = {task.name: score_task(task, cosines[task.name]) for task in tasks}
    scores = {name: round(parts["spearman"]["all"], 2) for name, parts in detail.items()}
    average = round(sum(scores.values()) / len(scores), 2)
    return {"scores": scores, "average": average, "detail": detail}


def _refuse_vectors(fault: str, texts: Sequence[str], usable: np.ndarray) -> None:
    if not usable.all():
        raise NotFinite(
            f"{len(texts) - usable.sum()} of {len(texts)} vectors are {fault}; the first is that "
            f"of {texts[int(np.argmin(usable))]!r}"
        )


def _correlations(
    name: str, gold: Float64[np.ndarray, " n"], cosines: Float64[np.ndarray, " n"]
) -> dict[str, float]:
    from scipy import stats

    for what, values in (("gold scores", gold), ("cosines", cosines)):
        if len(values) < 2 or np.ptp(values) == 0:
            raise NotFinite(
                f"{name}: no rank correlation, since its {len(values)} {what} do not differ"
            )
    # The types of scipy leave out the fields of these results.
    spearman: Any = stats.spearmanr(gold, cosines)
    pearson: Any = stats.pearsonr(gold, cosines)
    return {
        "spearman": 100 * float(spearman.statistic),
        "pearson": 100 * float(pearson.statistic),
    }
