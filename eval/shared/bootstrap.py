"""Bootstrap intervals of scores, and of the differences of two results.

For a difference both results are scored on the same resampled examples, so that what is hard for
both models cancels out. The statistic is the task's: 100 x Spearman of cosines against gold, the
accuracy of predictions in percent, or 100 x the mean of each example's score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

from prompteol_jax.errors import NotFinite

CHUNK: Final = 2**18  # resampled examples held together: what a core's cache holds
RESAMPLES: Final = 1000  # for the interval of a score
CONFIDENCE: Final = 0.95

Examples = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """The gain of B over A, its interval, and whether it could be chance.

    Attributes:
        left_out: Resamples without a correlation, because all their gold or all their cosines tie.
            They are not in the interval.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    noise: bool
    left_out: int = 0


def compare(
    a: Mapping[str, Examples],
    b: Mapping[str, Examples],
    *,
    resamples: int = 10_000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return the difference of each task, and under `average` that of the mean over tasks.

    The interval is between the percentiles of the resampled differences. Tasks are resampled
    independently of each other.

    Raises: NotFinite for a task with too few different values for a correlation or an interval.
    """
    points, samples = _resampled({name: (a[name], b[name]) for name in a}, resamples, seed)
    found = {}
    for name, (score_a, score_b) in points.items():
        low, high, left_out = _interval(name, samples[name][1] - samples[name][0], confidence)
        gain = score_b - score_a
        found[name] = Difference(score_a, score_b, gain, low, high, low <= 0 <= high, left_out)
    return found


def intervals(
    examples: Mapping[str, Examples],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return the interval [low, high] of each task's score, and under `average` that of the mean.

    A task whose resamples hardly ever have a correlation has no interval and is left out.
    """
    points, samples = _resampled({name: (it,) for name, it in examples.items()}, resamples, seed)
    found = {}
    for name in points:
        try:
            low, high, _ = _interval(name, samples[name][0], confidence)
        except NotFinite:
            continue
        found[name] = [round(low, 2), round(high, 2)]
    return found


def _resampled(
    sides: Mapping[str, Sequence[Examples]], resamples: int, seed: int
) -> tuple[dict[str, tuple[float, ...]], dict[str, np.ndarray]]:
    """Return the score of each side, and its resampled scores [sides, resamples], by task."""
    resample = STATISTICS[statistic_of({name: it[0] for name, it in sides.items()})]
    draws = np.random.default_rng(seed).spawn(len(sides))
    points, samples = {}, {}
    for (name, parts), draw in zip(sides.items(), draws, strict=True):
        scores, samples[name] = resample(parts, resamples, draw)
        if not np.isfinite(scores).all():
            raise NotFinite(f"{name}: no rank correlation, since its gold or its cosines all tie")
        points[name] = scores
    points["average"] = tuple(float(x) for x in np.mean(list(points.values()), axis=0))
    samples["average"] = np.mean(list(samples.values()), axis=0)
    return points, samples


def _interval(
    name: str, values: Float64[np.ndarray, " resamples"], confidence: float
) -> tuple[float, float, int]:
    usable, bounds = int(np.isfinite(values).sum()), percentiles(values, confidence)
    if bounds is None:
        raise NotFinite(
            f"{name}: no interval, since only {usable} of {len(values)} resamples have a rank "
            "correlation: it has too few pairs, or too few different gold scores or cosines"
        )
    return *bounds, len(values) - usable


def percentiles(
    values: Float64[np.ndarray, " resamples"], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return the bounds between which this share of the values is; None where most are not finite.

    Values that are not finite are left out.
    """
    usable = values[np.isfinite(values)]
    if 2 * len(usable) < len(values):
        return None
    tails = 100 * np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = map(float, np.percentile(usable, tails))
    return low, high


def spearman_samples(
    sides: Sequence[Examples], resamples: int, draw: np.random.Generator
) -> tuple[tuple[float, ...], Float64[np.ndarray, "sides resamples"]]:
    """Return 100 x Spearman of each side, and of its resamples; NaN where all values tie.

    All sides have the same gold. A resample is how often it holds each pair, so its ranks come from
    counting, without a sort: the mean rank of equal values is the number of values below them
    plus half of the number of these.
    """
    n = len(sides[0]["gold"])
    gold = _Ranking(sides[0]["gold"])
    rankings = [_Ranking(side["cosine"]) for side in sides]

    def scores(counts_RN: Int[np.ndarray, "R N"]) -> Float64[np.ndarray, "S R"]:
        gold_RN, weight_RN = gold.ranks(counts_RN), counts_RN.astype(np.float64)
        return np.stack(
            [_correlation(gold_RN, ranking.ranks(counts_RN), weight_RN) for ranking in rankings]
        )

    points = scores(np.ones((1, n), np.int64))[:, 0]
    found = []
    for start in range(0, resamples, max(1, CHUNK // n)):
        rows = min(max(1, CHUNK // n), resamples - start)
        picked = draw.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts_RN = np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)
        found.append(scores(counts_RN))
    return tuple(map(float, points)), np.concatenate(found, axis=1)


def accuracy_samples(
    sides: Sequence[Examples], resamples: int, draw: np.random.Generator
) -> tuple[tuple[float, ...], Float64[np.ndarray, "sides resamples"]]:
    """Return the accuracy of each side in percent, and of its resamples.

    Examples on which the same sides are right are alike. How many of each kind a resample holds is
    drawn in one step.
    """
    right_SN = np.stack([side["predicted"] == side["gold"] for side in sides])
    n = right_SN.shape[1]
    kinds_SP, counts_P = np.unique(right_SN, axis=1, return_counts=True)
    drawn_RP = draw.multinomial(n, counts_P / n, resamples)
    points = 100 * right_SN.mean(axis=1)
    return tuple(map(float, points)), 100 * (kinds_SP @ drawn_RP.T) / n


def mean_samples(
    sides: Sequence[Examples], resamples: int, draw: np.random.Generator
) -> tuple[tuple[float, ...], Float64[np.ndarray, "sides resamples"]]:
    """Return 100 x the mean score of each side, and of its resamples."""
    score_SN = np.stack([side["score"] for side in sides])
    n = score_SN.shape[1]
    found = []
    for start in range(0, resamples, max(1, CHUNK // n)):
        rows = min(max(1, CHUNK // n), resamples - start)
        found.append(score_SN[:, draw.integers(n, size=(rows, n))].mean(axis=2))
    return tuple(map(float, 100 * score_SN.mean(axis=1))), 100 * np.concatenate(found, axis=1)


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
        """Return the mean rank of each value among those that each resample holds."""
        below_RG = np.cumsum(counts_RN[:, self.order], axis=1)[:, self.last].astype(np.float64)
        rank_RG = (below_RG + np.pad(below_RG[:, :-1], ((0, 0), (1, 0))) + 1) / 2
        return rank_RG[:, self.group]


def _correlation(x_RN: np.ndarray, y_RN: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """Compute 100 x Pearson of each row, its entries counted by their weights; NaN for a tie."""
    middle = (x_RN.shape[1] + 1) / 2  # the mean of ranks, ties or not
    x_RN, y_RN = x_RN - middle, y_RN - middle
    weighted_RN = weight_RN * x_RN
    product_R = np.einsum("RN,RN->R", weighted_RN, y_RN)
    square_x_R = np.einsum("RN,RN->R", weighted_RN, x_RN)
    square_y_R = np.einsum("RN,RN,RN->R", weight_RN, y_RN, y_RN)
    with np.errstate(invalid="ignore"):
        return 100 * product_R / np.sqrt(square_x_R * square_y_R)


def statistic_of(examples: Mapping[str, Examples]) -> str:
    """Return which statistic the examples are for, as a name in STATISTICS."""
    (kind,) = set(next(iter(examples.values()))) - {"gold"}
    return kind


STATISTICS: Final = MappingProxyType(
    {"cosine": spearman_samples, "predicted": accuracy_samples, "score": mean_samples}
)
