"""Which candidates are hard negatives: near the anchor, and no positive of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from prompteol_jax.search import Block, search

Encode = Callable[[Sequence[str]], np.ndarray]


class MiningLimits(NamedTuple):
    """What a negative's rank and cosine are held to; see `MineOptions`."""

    range_min: int
    range_max: int
    min_score: float | None = None
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None


class Candidates(NamedTuple):
    """The nearest documents of every pair's anchor, from the nearest on.

    Attributes:
        document_nk: number of each document, -1 for none; score_nk: its cosine with the anchor.
        positive_nk: whether it is a positive of the anchor, or the anchor itself.
        own_n: cosine of anchor and positive; of several positives the lowest.
    """

    document_nk: Int[np.ndarray, "n k"]
    score_nk: Float[np.ndarray, "n k"]
    positive_nk: Bool[np.ndarray, "n k"]
    own_n: Float[np.ndarray, "n"]


def candidates_of(
    pairs: Sequence[Any], texts: Sequence[str], encode: Encode, mesh: Mesh, most: int
) -> Candidates:
    """Encode anchors and documents, each text one time, and search.

    Args:
        texts: documents, all different, the pairs' positives among them.
        encode: function from texts to vectors; mesh: where the search runs.
        most: number of candidates that are no positives, where there are so many.
    """
    number = {text: n for n, text in enumerate(texts)}
    positives: dict[str, set[int]] = defaultdict(set)
    for pair in pairs:
        positives[pair.sent0].add(number[pair.sent1])
        if pair.sent0 in number:
            positives[pair.sent0].add(number[pair.sent0])
    anchors = list(positives)
    vectors = encode([*texts, *anchors])
    z_nD, z_qD = vectors[: len(texts)], vectors[len(texts) :]
    k = min(len(texts), most + max(map(len, positives.values())))
    found = search(z_qD, [Block(z_nD, np.arange(len(texts)))], k, mesh)
    of_anchor = [sorted(own) for own in positives.values()]
    positive_qk = np.stack(
        [np.isin(row, own) for row, own in zip(found.order_qk, of_anchor, strict=True)]
    )
    row = {anchor: n for n, anchor in enumerate(anchors)}
    own: dict[str, float] = {}
    for pair in pairs:
        cosine = _cosine(z_qD[row[pair.sent0]], z_nD[number[pair.sent1]])
        own[pair.sent0] = min(cosine, own.get(pair.sent0, 1.0))
    rows = [row[pair.sent0] for pair in pairs]
    return Candidates(
        found.order_qk[rows],
        found.score_qk[rows],
        positive_qk[rows],
        np.array([own[pair.sent0] for pair in pairs]),
    )


def choose(
    found: Candidates, limits: MiningLimits, negatives: int, seed: int | None
) -> tuple[list[list[int]], dict[str, int]]:
    """Return the documents chosen for each pair, and how many candidates each limit removed.

    Ranks are those among the candidates that are left when all other limits have removed theirs.

    Args:
        seed: seed of a choice among all of them; None for the nearest ones.
    Source: the order of conditions of sentence-transformers' `mine_hard_negatives`.
    """
    score_nk, own_n1 = found.score_nk, found.own_n[:, None]
    left_nk = (found.document_nk >= 0) & ~found.positive_nk
    removed = {"positives": int(found.positive_nk.sum())}
    conditions = {
        "margin": (limits.margin, lambda m: score_nk + m > own_n1),
        "relative_margin": (limits.relative_margin, lambda m: score_nk > own_n1 - abs(own_n1) * m),
        "max_score": (limits.max_score, lambda limit: score_nk > limit),
        "min_score": (limits.min_score, lambda limit: score_nk < limit),
    }
    for name, (limit, outside) in conditions.items():
        if limit is not None:
            out_nk = left_nk & outside(limit)
            removed[name], left_nk = int(out_nk.sum()), left_nk & ~out_nk
    rng = None if seed is None else np.random.default_rng(seed)
    chosen = []
    for document_k, left_k in zip(found.document_nk, left_nk, strict=True):
        window = document_k[left_k][limits.range_min : limits.range_max]
        if rng is not None and len(window) > negatives:
            window = window[np.sort(rng.choice(len(window), negatives, replace=False))]
        chosen.append([int(document) for document in window[:negatives]])
    return chosen, removed


def _cosine(x_D: np.ndarray, y_D: np.ndarray) -> float:
    x_D, y_D = x_D.astype(np.float64), y_D.astype(np.float64)
    return float(x_D @ y_D / (np.linalg.norm(x_D) * np.linalg.norm(y_D)))
