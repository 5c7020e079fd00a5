"""Metrics are trec_eval's, to the last digit that matters."""

from __future__ import annotations

import numpy as np
import pytest

from eval.retrieval.metrics import Hit, evaluate, means, ranked

pytestmark = pytest.mark.unit

pytrec_eval = pytest.importorskip("pytrec_eval")
CUTS = (1, 3, 5, 10, 100)
NAMES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}


def made(seed):
    """Random runs with ties, double scores nearly equal, unjudged, missing and extra queries."""
    rng = np.random.default_rng(seed)
    documents = [f"{kind}{n}" for kind in "aBz" for n in range(40)]
    qrels = {
        f"q{q}": {
            document: int(rng.integers(-1, 4))
            for document in rng.choice(documents, rng.integers(1, 30), replace=False)
        }
        for q in range(25)
    }
    qrels["q24"] = dict.fromkeys(qrels["q24"], 0)
    run = {
        f"q{q}": {
            document: float(rng.integers(0, 5) / 4 + rng.choice([0, 1e-9, 1e-7]))
            for document in rng.choice(documents, rng.integers(1, 120), replace=False)
        }
        for q in range(2, 28)
    }
    return run, qrels


@pytest.mark.parametrize("seed", range(8))
def test_every_metric_of_every_query_is_trec_evals(seed):
    run, qrels = made(seed)
    measures = {f"{name}.{','.join(map(str, CUTS))}" for name in NAMES.values()} | {"recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    hits = {query: [Hit(*pair) for pair in found.items()] for query, found in run.items()}
    ours = evaluate(hits, qrels, CUTS)
    assert set(ours) == set(theirs)
    for query, scores in ours.items():
        for name, value in scores.items():
            metric, _, cut = name.partition("@")
            key = f"{NAMES[metric]}_{cut}" if cut else "recip_rank"
            assert value == pytest.approx(theirs[query][key], abs=1e-9), (query, name)


def test_ties_in_float32_go_to_the_greater_id():
    hits = [Hit("a", 0.5), Hit("b", 0.5 + 1e-9), Hit("A", 0.5), Hit("c", 0.4)]
    assert [hit.document for hit in ranked(hits)] == ["b", "a", "A", "c"]


def test_means_are_over_the_queries_of_run_and_judgments():
    scores = evaluate({"q": [Hit("a", 1.0)], "other": []}, {"q": {"a": 1}, "none": {"a": 1}}, (1,))
    assert means(scores)["ndcg@1"] == 1.0
