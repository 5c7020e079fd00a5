"""Paired bootstrap of two results: the same resampled examples for both, task by task.

What is hard for both models cancels out of the difference. The statistic is the task's own:
100 x Spearman of cosines against gold, or accuracy in percent of predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

CHUNK: Final = 2**21  # resampled examples held at once

Examples = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """What B gains over A, its interval, and whether that could be chance."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    noise: bool


def compare(
    a: Mapping[str, Examples],
    b: Mapping[str, Examples],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Returns the difference of each task, and under `average` that of the mean over tasks.

    The interval is that between the percentiles of the resampled differences. Tasks are resampled
    independently of each other.
    """
    bootstrap = spearman_bootstrap if statistic_of(a) == "cosine" else accuracy_bootstrap
    draws = np.random.default_rng(seed).spawn(len(a))
    points, samples = {}, {}
    for name, draw in zip(a, draws, strict=True):
        points[name], samples[name] = bootstrap(a[name], b[name], resamples, draw)
    points["average"] = tuple(np.mean(list(points.values()), axis=0))
    samples["average"] = np.mean(list(samples.values()), axis=0)
    tails = 100 * np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    found = {}
    for name, (score_a, score_b) in points.items():
        low, high = map(float, np.percentile(samples[name], tails))
        gain = float(score_b - score_a)
        found[name] = Difference(
            float(score_a), float(score_b), gain, low, high, bool(low <= 0 <= high)
        )
    return found


def spearman_bootstrap(
    a: Examples, b: Examples, resamples: int, draw: np.random.Generator
) -> tuple[tuple[float, float], Float64[np.ndarray, " resamples"]]:
    """Returns 100 x Spearman of A and of B, and the resampled differences.

    A resample is how often it holds each pair, so its ranks come from counting, without a sort:
    the mean rank of equal values is what lies below them, and half of what they are.
    """
    n = len(a["gold"])
    gold, first, second = (_Ranking(v) for v in (a["gold"], a["cosine"], b["cosine"]))

    def scores(counts_RN: Int[np.ndarray, "R N"]) -> tuple[np.ndarray, np.ndarray]:
        gold_RN, weight_RN = gold.ranks(counts_RN), counts_RN.astype(np.float64)
        return tuple(
            _correlation(gold_RN, ranking.ranks(counts_RN), weight_RN)
            for ranking in (first, second)
        )

    score_a, score_b = (float(part[0]) for part in scores(np.ones((1, n), np.int64)))
    differences = []
    for start in range(0, resamples, max(1, CHUNK // n)):
        rows = min(max(1, CHUNK // n), resamples - start)
        picked = draw.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts_RN = np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)
        low, high = scores(counts_RN)
        differences.append(high - low)
    return (score_a, score_b), np.concatenate(differences)


def accuracy_bootstrap(
    a: Examples, b: Examples, resamples: int, draw: np.random.Generator
) -> tuple[tuple[float, float], Float64[np.ndarray, " resamples"]]:
    """Returns the accuracies of A and of B, and the resampled differences.

    Only three kinds of examples matter: right in B alone, right in A alone, and the rest. How many
    of each a resample holds is drawn at once.
    """
    right_a, right_b = (it["predicted"] == it["gold"] for it in (a, b))
    n = len(right_a)
    gained, lost = np.count_nonzero(right_b & ~right_a), np.count_nonzero(right_a & ~right_b)
    counts_R3 = draw.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], resamples)
    points = 100 * float(np.mean(right_a)), 100 * float(np.mean(right_b))
    return points, 100 * (counts_R3[:, 0] - counts_R3[:, 1]) / n


class _Ranking:
    """Values in order, to rank any resample of them."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        in_order = values[self.order]
        new = np.append(True, in_order[1:] != in_order[:-1])
        self.group = np.empty(len(values), np.int64)
        self.group[self.order] = np.cumsum(new) - 1
        self.last = np.append(np.flatnonzero(new)[1:] - 1, len(values) - 1)

    def ranks(self, counts_RN: np.ndarray) -> np.ndarray:
        """Returns the mean rank of each value among those that each resample holds."""
        below_RG = np.cumsum(counts_RN[:, self.order], axis=1)[:, self.last].astype(np.float64)
        rank_RG = (below_RG + np.pad(below_RG[:, :-1], ((0, 0), (1, 0))) + 1) / 2
        return rank_RG[:, self.group]


def _correlation(x_RN: np.ndarray, y_RN: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """Computes 100 x Pearson of each row, its entries counted by their weights."""
    middle = (x_RN.shape[1] + 1) / 2  # the mean of ranks, ties or not
    x_RN, y_RN = x_RN - middle, y_RN - middle
    weighted_RN = weight_RN * x_RN
    product_R = np.einsum("RN,RN->R", weighted_RN, y_RN)
    square_x_R = np.einsum("RN,RN->R", weighted_RN, x_RN)
    square_y_R = np.einsum("RN,RN,RN->R", weight_RN, y_RN, y_RN)
    return 100 * product_R / np.sqrt(square_x_R * square_y_R)


def statistic_of(examples: Mapping[str, Examples]) -> str:
    """Returns which statistic the examples are for: `cosine` or `predicted`."""
    (kind,) = set(next(iter(examples.values()))) - {"gold"}
    return kind
