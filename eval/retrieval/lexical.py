"""BM25, the lexical reference. Only this module imports bm25s, an extra."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from eval.retrieval import metrics
from eval.retrieval.ranking import Ranking, ranking_of
from eval.retrieval.task import Retrieval
from prompteol_jax.search import Found

K1: Final = 0.9  # with b, the defaults of Anserini, whose BM25 BEIR reports
B: Final = 0.4
SETTINGS: Final = f"BM25 by bm25s: Lucene's form, k1 {K1}, b {B}, English stop words, no stemmer"


def is_installed() -> bool:
    """Return whether the extra `retrieval` is there."""
    return find_spec("bm25s") is not None


def rank(task: Retrieval, k: int) -> Ranking:
    """Rank the documents that share a word with the query; ties as `metrics` orders them."""
    import bm25s

    def tokenize(texts: list[str]) -> list[Any]:
        return list(bm25s.tokenize(texts, show_progress=False, return_ids=False))

    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(tokenize(list(task.corpus.texts())), show_progress=False)
    best = metrics.id_order(task.corpus.ids)
    order_n = np.argsort(best)
    words = tokenize(task.queries.texts)
    none_n = np.zeros(len(best), np.float32)
    scores = (index.get_scores(some) if some else none_n for some in words)
    found = [_best(score_n, order_n, k + 1) for score_n in scores]
    together = Found(*(np.stack(parts) for parts in zip(*found, strict=True)))
    return ranking_of(task, together, best, k)


def _best(score_n: Float[np.ndarray, "n"], order_n: Int[np.ndarray, "n"], k: int) -> Found:
    """Return the k best documents of one query that score above 0."""
    score_n = np.asarray(score_n, np.float32)
    floor = np.partition(score_n, -k)[-k] if len(score_n) > k else 0.0
    some = np.flatnonzero((score_n >= floor) & (score_n > 0))
    some = some[np.lexsort((order_n[some], -score_n[some]))][:k]
    order_k, score_k = np.full(k, -1), np.full(k, -np.inf, np.float32)
    order_k[: len(some)], score_k[: len(some)] = order_n[some], score_n[some]
    return Found(order_k, score_k)
