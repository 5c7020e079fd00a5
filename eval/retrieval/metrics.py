"""Ranking metrics with trec_eval's arithmetic.

Scores are float32. Equal scores are ordered by document id, the greater id first. Gains are linear,
discounts log2(rank + 1), and the ideal ranking holds all judged documents. A query without a
relevant document scores 0 and counts; a query that is missing from a run is left out of the means.

Source: trec_eval's m_ndcg_cut.c, m_map_cut.c, m_recall.c, m_P.c and m_recip_rank.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

CUTS: Final = (1, 3, 5, 10, 100, 1000)
Qrels = Mapping[str, Mapping[str, int]]  # query id -> document id -> relevance


class Hit(NamedTuple):
    """A document found for a query."""

    document: str
    score: float


Run = Mapping[str, Sequence[Hit]]


def ranked(hits: Sequence[Hit]) -> list[Hit]:
    """Return hits in trec_eval's order: highest float32 score first, ties by greater id."""
    return sorted(hits, key=lambda hit: (np.float32(hit.score), hit.document), reverse=True)


def evaluate(run: Run, qrels: Qrels, cuts: Sequence[int] = CUTS) -> dict[str, dict[str, float]]:
    """Return the metrics of every query that is in both run and judgments, by query and name.

    The names are `ndcg@k`, `map@k`, `recall@k`, `precision@k` for each cut, and `mrr`.
    """
    return {
        query: score_query([hit.document for hit in ranked(hits)], qrels[query], cuts)
        for query, hits in run.items()
        if query in qrels
    }


def score_query(
    documents: Sequence[str], judged: Mapping[str, int], cuts: Sequence[int] = CUTS
) -> dict[str, float]:
    """Return the metrics of one ranking.

    Math: DCG@k = sum of gain_r / log2(r + 1) over ranks r up to k; nDCG@k = DCG@k / ideal DCG@k.
        MAP@k = sum of precision@r over the relevant ranks r up to k / number of relevant documents.
    Args:
        documents: ids in the order of their rank.
        judged: relevance by document id; documents above 0 are relevant.
    """
    gain_r = np.array([max(0, judged.get(document, 0)) for document in documents], np.float64)
    ideal_r = np.sort([float(max(0, gain)) for gain in judged.values()])[::-1]
    relevant_r = gain_r > 0
    total = int(np.count_nonzero(ideal_r))
    found_r = np.cumsum(relevant_r)
    rank_r = np.arange(1, len(gain_r) + 1)
    precision_r = found_r / rank_r
    scores = {}
    for k in cuts:
        found = int(found_r[:k][-1]) if len(found_r[:k]) else 0
        ideal = _dcg(ideal_r[:k])
        precise = float(precision_r[:k][relevant_r[:k]].sum())
        scores[f"ndcg@{k}"] = _dcg(gain_r[:k]) / ideal if ideal else 0.0
        scores[f"map@{k}"] = precise / total if total else 0.0
        scores[f"recall@{k}"] = found / total if total else 0.0
        scores[f"precision@{k}"] = found / k
    scores["mrr"] = 1.0 / rank_r[relevant_r][0] if relevant_r.any() else 0.0
    return scores


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the queries."""
    names = next(iter(scores.values()), {})
    return {name: float(np.mean([one[name] for one in scores.values()])) for name in names}


def id_order(documents: Sequence[str]) -> Int[np.ndarray, "n"]:
    """Return the positions of documents in descending order of their ids, for ties."""
    return np.array(sorted(range(len(documents)), key=documents.__getitem__, reverse=True), int)


def _dcg(gain_r: Float32[np.ndarray, "r"] | np.ndarray) -> float:
    return float((gain_r / np.log2(np.arange(2, len(gain_r) + 2))).sum())
