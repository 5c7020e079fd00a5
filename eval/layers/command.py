"""Score every layer of a model in one encoding: which one holds the sentence best.

    python -m eval.layers --model facebook/opt-2.7b --data SentEval/data/downstream

The states of all layers come out of one forward pass, so the sweep costs little more than scoring
the last layer alone. Layers are numbered as transformers' `hidden_states`: inner ones are raw, the
last one is behind the final norm.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.layers import report
from eval.shared import bootstrap, results
from eval.shared.command import SentEvalOptions
from eval.sts import scores
from eval.sts.tasks import Task, describe_data, read_tasks
from prompteol_jax import Embedder
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check


@dataclass(frozen=True, kw_only=True)
class LayersOptions(SentEvalOptions):
    """Score every layer's last-token state: 100 x Spearman of cosine against gold."""

    split: Literal["test", "dev"] = "dev"
    """Split to score; dev, on which choices are made, exists for STSBenchmark (the default) and
    SICKRelatedness."""
    tasks: tuple[str, ...] = ()
    """Tasks to score; those of the split by default."""

    def problems(self) -> list[str]:
        """List the flags that choose what is swept."""
        found = []
        if self.layer is not None:
            found.append(f"--layer {self.layer}: all layers are scored; leave --layer out")
        if self.pooling != "last":
            found.append(f"--pooling {self.pooling}: layers are read at the last token")
        return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.layers", LayersOptions, run, argv)


def run(options: LayersOptions) -> dict[str, Any]:
    """Score every layer, print the table, write the files asked for and return the result."""
    check(options)
    results.prepare(options.json, options.report)
    chosen = read_tasks(options.data, options.tasks, options.split)
    embedder = options.load("float32")
    start = time.perf_counter()
    rows = score_layers(embedder, chosen, clean=not options.raw)
    best = max(rows, key=lambda row: row["average"])
    result = {
        **results.header("eval.layers", embedder, options),
        "layers": rows,
        "best": {"layer": best["layer"], "average": best["average"]},
        "clean": not options.raw,
        "pairs": sum(map(len, chosen)),
        "seconds": round(time.perf_counter() - start, 3),
        "data": describe_data(options.data, options.split, chosen),
        **results.record(embedder, options),
    }
    report.print_scores(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        report.write_report(options.report, result)
    return result


def score_layers(
    embedder: Embedder,
    tasks: Sequence[Task],
    *,
    clean: bool = True,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Score every layer.

    Tasks are encoded one after another, since the states of all layers take much memory.

    Returns: For each layer, the first one first, its number, `from_end`, `scores` and `average`,
        and the `intervals` of the two.
    """
    depth = embedder.decoder.depth
    detail: list[dict[str, Any]] = [{} for _ in range(depth)]
    shown: list[dict[str, Any]] = [{} for _ in range(depth)]
    for task in tasks:

        @functools.lru_cache(maxsize=1)
        def states(texts: tuple[str, ...]) -> list[np.ndarray]:
            return embedder.encode_layers(texts, progress=progress)

        for index in range(depth):
            cosines = scores.task_cosines(_Layer(states, index), [task], clean=clean)
            detail[index][task.name] = scores.score_tasks([task], cosines)["scores"][task.name]
            joined = np.concatenate(cosines[task.name])
            shown[index][task.name] = {"gold": task.gold, "cosine": joined}
    return [
        {
            "layer": index + 1,
            "from_end": index - depth,
            "scores": by_task,
            "average": round(sum(by_task.values()) / len(by_task), 2),
            "intervals": bootstrap.intervals(examples),
        }
        for index, (by_task, examples) in enumerate(zip(detail, shown, strict=True))
    ]


@dataclass(frozen=True)
class _Layer:
    """One layer as an encoder; all of them share the states of one encoding."""

    states: Callable[[tuple[str, ...]], list[np.ndarray]]
    index: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.states(tuple(texts))[self.index]
