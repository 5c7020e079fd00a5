"""Rank documents for queries in BEIR folders, and score the rankings as trec_eval does.

    python -m eval.retrieval --model facebook/opt-2.7b --data beir/scifact --json scifact.json

The table goes to standard output, progress to standard error. Every file is read and checked
before the model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.retrieval import beir, lexical, ranking, report, trec
from eval.retrieval.options import RankingOptions
from eval.retrieval.ranking import Ranking
from eval.retrieval.task import Retrieval
from eval.shared import bootstrap, results
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check
from prompteol_jax.storage import paths

MAIN: Final = "ndcg@10"


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(RankingOptions):
    """Score a model on retrieval tasks in BEIR's layout: 100 x nDCG@10; float32."""

    data: tuple[Path, ...]
    """BEIR folders: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, each plain or .gz."""
    split: str = "test"
    """Split whose judgments are scored: qrels/SPLIT.tsv."""

    def problems(self) -> list[str]:
        """List what does not fit between these flags."""
        missing = "--data names no folder; give one BEIR folder or more"
        return [*super().problems(), *([] if self.data else [missing])]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.retrieval", RetrievalOptions, run, argv)


def run(options: RetrievalOptions) -> dict[str, Any]:
    """Rank and score, print the table, write the files asked for and return the result."""
    check(options)
    prepare(options)
    tasks = [beir.read(folder, options.split) for folder in options.data]
    data = {"folder": ", ".join(map(str, options.data)), "split": options.split, "incomplete": {}}
    return score("eval.retrieval", tasks, data, options)


def prepare(options: RankingOptions) -> None:
    """Make the folders of outputs, and look for the prompts of both sides."""
    options.side("query").as_method()
    options.side("document").as_method()
    paths.refuse_buckets(options.vectors)
    results.prepare(options.json, options.report, options.run)


def score(
    command: str, tasks: list[Retrieval], data: dict[str, Any], options: RankingOptions
) -> dict[str, Any]:
    """Rank and score tasks, print the table, write the files asked for and return the result.

    Args:
        command: name of the command, such as `eval.loco`.
        data: folder, split, and which tasks are not the published ones.
    """
    ranking.check_folders(tasks, options.vectors)
    if options.run:
        trec.check_ids(tasks)
    sides = options.sides()
    start = time.perf_counter()
    ranked = [ranking.rank(task, options, sides) for task in tasks]
    seconds = round(time.perf_counter() - start, 3)
    lexically = None
    if not options.no_lexical and lexical.is_installed():
        lexically = [lexical.rank(task, options.k) for task in tasks]
    result = {
        **results.header(command, sides.documents, options),
        **_scores(ranked, lexically),
        "template": sides.template,
        **({"method": sides.method} if sides.method else {}),
        "clean": options.clean,
        "seconds": seconds,
        "data": data | _content(tasks),
        "templates": {
            name: getattr(sides, name).template.to_json() for name in ("queries", "documents")
        },
        "methods": {
            name: getattr(sides, name).describe_method() for name in ("queries", "documents")
        },
        "max_tokens": sides.documents.max_tokens,
        **results.record(sides.documents, options),
        "per_query": {one.task.name: _per_query(one) for one in ranked},
        "examples": {one.task.name: _examples(one) for one in ranked},
    }
    report.print_scores(result)
    _write(options, result, ranked)
    return result


def _write(options: RankingOptions, result: dict[str, Any], ranked: Sequence[Ranking]) -> None:
    if options.run:
        prompt = result.get("method") or result["template"]
        tag = f"{Path(str(result['model'])).name}-{prompt}"
        for one in ranked:
            trec.write(trec.file_of(options.run, one.task.name, len(ranked)), one.hits, tag)
    if options.json:
        results.write(options.json, result)
    if options.report:
        report.write_report(options.report, result, ranked)


def _scores(ranked: Sequence[Ranking], lexically: Sequence[Ranking] | None) -> dict[str, Any]:
    """Return 100 x the main score by task, their mean and intervals, and every metric."""
    found = {one.task.name: round(100 * one.means[MAIN], 2) for one in ranked}
    bm25 = {one.task.name: one.means for one in lexically or ()}
    return {
        "scale": "100 x nDCG@10",
        "scores": found,
        "average": round(float(np.mean(list(found.values()))), 2),
        "intervals": bootstrap.intervals({one.task.name: _examples(one) for one in ranked}),
        "detail": {
            one.task.name: {
                **{"queries": len(one.task.queries), "documents": len(one.task.corpus)},
                "unjudged_queries": one.task.unjudged,
                "cut": {"queries": one.cut_queries, "documents": one.cut_documents},
                "metrics": one.means,
            }
            for one in ranked
        },
        "bm25": {"settings": lexical.SETTINGS, "metrics": bm25} if bm25 else None,
    }


def _content(tasks: Sequence[Retrieval]) -> dict[str, Any]:
    """Return the digest and the sizes of the data."""
    return {
        "sha256": {task.name: task.sha256() for task in tasks},
        "rows": {task.name: [len(task.queries), len(task.corpus)] for task in tasks},
    }


def _examples(one: Ranking) -> dict[str, np.ndarray]:
    """Return each query's number of relevant documents and main score, for `prompteol compare`."""
    relevant = [len(one.task.relevant(query)) for query in one.task.queries.ids]
    return {"gold": np.array(relevant), "score": one.values(MAIN)}


def _per_query(one: Ranking) -> dict[str, Any]:
    return {"id": one.task.queries.ids, **{name: one.values(name) for name in one.means}}
