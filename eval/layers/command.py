"""Scores every layer of a model in one encoding: which one holds the sentence best.

    python -m eval.layers --model facebook/opt-2.7b --data SentEval/data/downstream

The states of all layers come out of one forward pass, so the sweep costs little more than scoring
the last layer alone. Layers are numbered as transformers' `hidden_states`: inner ones are raw, the
last one is behind the final norm.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.layers import report as layers_report
from eval.shared import results
from eval.sts import scores
from eval.sts.tasks import Task, read_tasks
from prompteol_jax import Embedder
from prompteol_jax.cli.commands import run_command
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LayersOptions(ModelOptions):
    """Scores every layer's last-token state: 100 x Spearman of cosine against gold."""

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    split: Literal["test", "dev"] = "dev"
    """The split to score; dev, on which choices are made, exists for STSBenchmark (the default)
    and SICKRelatedness."""
    tasks: tuple[str, ...] = ()
    """Tasks to score; those of the split by default."""
    raw: bool = False
    """Encode sentences as they are, without the original's punctuation rules."""
    json: Path | None = None
    """File for the scores of every layer."""
    report: Path | None = None
    """File for a page of HTML with the scores against the layer."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    program = "python -m eval.layers"
    run_command(program, run, tyro.cli(LayersOptions, args=argv, prog=program, config=config))


def run(options: LayersOptions) -> dict[str, Any]:
    """Scores every layer, prints the table, writes the files asked for and returns the result."""
    _check(options)
    results.prepare(options.json, options.report)
    chosen = read_tasks(options.data, options.tasks, options.split)
    embedder = options.load("float32")
    start = time.perf_counter()
    rows = score_layers(embedder, chosen, clean=not options.raw)
    best = max(rows, key=lambda row: row["average"])
    result = {
        **results.header(embedder),
        "layers": rows,
        "best": {"layer": best["layer"], "average": best["average"]},
        "clean": not options.raw,
        "pairs": sum(map(len, chosen)),
        "seconds": round(time.perf_counter() - start, 3),
        **results.record(embedder, options),
    }
    print_table(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        layers_report.write_report(options.report, result)
    return result


def score_layers(
    embedder: Embedder,
    tasks: Sequence[Task],
    *,
    clean: bool = True,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Scores every layer, the first one first: its number, `from_end`, `scores` and `average`.

    Tasks are encoded one after another, since the states of all layers take much memory.
    """
    depth = embedder.decoder.depth
    detail: list[dict[str, Any]] = [{} for _ in range(depth)]
    for task in tasks:

        @functools.lru_cache(maxsize=1)
        def states(texts: tuple[str, ...]) -> list[np.ndarray]:
            return embedder.encode_layers(texts, progress=progress)

        for index in range(depth):
            cosines = scores.task_cosines(_Layer(states, index), [task], clean=clean)
            detail[index][task.name] = scores.score_tasks([task], cosines)["scores"][task.name]
    return [
        {
            "layer": index + 1,
            "from_end": index - depth,
            "scores": by_task,
            "average": round(sum(by_task.values()) / len(by_task), 2),
        }
        for index, by_task in enumerate(detail)
    ]


@dataclass(frozen=True)
class _Layer:
    """One layer as an encoder; all of them share the states of one encoding."""

    states: Callable[[tuple[str, ...]], list[np.ndarray]]
    index: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.states(tuple(texts))[self.index]


def _check(options: LayersOptions) -> None:
    problems = []
    if options.layer is not None:
        problems.append(f"--layer {options.layer}: all layers are scored; leave --layer out")
    if options.pooling != "last":
        problems.append(f"--pooling {options.pooling}: layers are read at the last token")
    if problems:
        raise UserError("; ".join(problems))


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the scores of every layer under a header that names model, template and dtype."""
    from rich import console, table, text

    grid = table.Table(title=text.Text(results.title(result)), title_justify="left")
    for name in layers_report.columns(result):
        grid.add_column(name, justify="right")
    for row, cells in zip(result["layers"], layers_report.score_rows(result), strict=True):
        is_best = row["layer"] == result["best"]["layer"]
        grid.add_row(*cells, style="bold" if is_best else None)
    console.Console().print(grid)
