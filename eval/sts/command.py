"""Score a model on STS12-16, STSBenchmark and SICKRelatedness, as the original harness does.

    python -m eval.sts --model facebook/opt-2.7b --data SentEval/data/downstream --json sts.json

The table goes to standard output, progress to standard error. Every file is read and checked
before the model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.shared import bootstrap, results
from eval.shared.command import SentEvalOptions
from eval.shared.vector_cache import CacheOptions
from eval.sts import original, report, scores
from eval.sts.pairs import Task
from eval.sts.tasks import describe_data, read_tasks
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check


@dataclass(frozen=True, kw_only=True)
class StsOptions(SentEvalOptions, CacheOptions):
    """Score a model on the seven STS tasks: 100 x Spearman of cosine against gold."""

    split: Literal["test", "dev"] = "test"
    """Split to score; dev exists for STSBenchmark (the default) and SICKRelatedness."""
    tasks: tuple[str, ...] = ()
    """Tasks to score, such as STS12 STSBenchmark; all seven unless given."""
    strict_original: Literal["float32", "float16"] | None = None
    """Do to numbers what the released script does, with vectors in this precision: float32, or
    float16 as on its 4-bit and tensor-parallel paths. It uses no cache."""


Lend = Callable[[StsOptions], tuple[Any, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.sts", StsOptions, run, argv)


def run(options: StsOptions, lend: Lend | None = None) -> dict[str, Any]:
    """Score the model, print the table, write the files asked for and return the result.

    Args:
        lend: Function that returns the embedder, and what encodes for it, in place of loading.
    """
    check(options)
    results.prepare(options.json, options.report)
    chosen = read_tasks(options.data, options.tasks, options.split)
    embedder, encoder = (lend or _load)(options)
    result, cosines = score(embedder, chosen, options, encoder)
    report.print_scores(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        report.write_report(options.report, result, chosen, cosines, embedder)
    return result


def _load(options: StsOptions) -> tuple[Any, Any]:
    embedder = options.load("float32")
    return embedder, embedder if options.strict_original else options.cached(embedder)


def score(
    embedder: Any, chosen: Sequence[Task], options: StsOptions, encoder: Any = None
) -> tuple[dict[str, Any], scores.Cosines]:
    """Score an embedder.

    Args:
        encoder: Encoder with the vectors of the embedder, where they come from somewhere else.
    Returns: The content of `--json`, and the cosines of every task.
    """
    start = time.perf_counter()
    cosines = _cosines(options, encoder or embedder, chosen)
    seconds = round(time.perf_counter() - start, 3)
    shown = examples(chosen, cosines)
    result = {
        **results.header("eval.sts", embedder, options),
        **scores.score_tasks(chosen, cosines),
        "intervals": bootstrap.intervals(shown),
        "clean": not options.raw,
        "strict_original": options.strict_original,
        "pairs": sum(map(len, chosen)),
        "seconds": seconds,
        "from_cache": getattr(encoder, "found", 0),
        "data": describe_data(options.data, options.split, chosen),
        **results.record(embedder, options),
        "examples": shown,
    }
    return result, cosines


def _cosines(options: StsOptions, encoder: Any, chosen: Sequence[Task]) -> scores.Cosines:
    clean = not options.raw
    if options.strict_original is None:
        return scores.task_cosines(encoder, chosen, clean=clean)
    half = options.strict_original == "float16"
    return original.task_cosines(encoder, chosen, clean=clean, half=half)


def examples(
    chosen: Sequence[Task], cosines: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    """Return gold and cosine of each pair by task, which `prompteol compare` reads."""
    return {
        task.name: {"gold": task.gold, "cosine": np.concatenate(cosines[task.name])}
        for task in chosen
    }
