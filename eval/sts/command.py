"""Scores a model on STS12-16, STSBenchmark and SICKRelatedness, as the original harness does.

    python -m eval.sts --model facebook/opt-2.7b --data SentEval/data/downstream --json sts.json

The table goes to standard output, progress to standard error. Every file is read and checked
before the model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.shared import results
from eval.sts import original, scores
from eval.sts import report as sts_report
from eval.sts.pairs import Task
from eval.sts.tasks import read_tasks
from prompteol_jax.cli.commands import run_command
from prompteol_jax.cli.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class StsOptions(ModelOptions):
    """Scores a model on the seven STS tasks: 100 x Spearman of cosine against gold."""

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    split: Literal["test", "dev"] = "test"
    """The split to score; dev exists for STSBenchmark (the default) and SICKRelatedness."""
    tasks: tuple[str, ...] = ()
    """Tasks to score, such as STS12 STSBenchmark; all seven unless given."""
    raw: bool = False
    """Encode sentences as they are, without the original's punctuation rules."""
    strict_original: Literal["float32", "float16"] | None = None
    """Do to numbers what the released script does, with vectors in this precision: float32, or
    float16 as on its 4-bit and tensor-parallel paths."""
    json: Path | None = None
    """File for the scores and every detail."""
    report: Path | None = None
    """File for a page of HTML with the scores and a scatter of gold against cosine a task."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    program = "python -m eval.sts"
    run_command(program, run, tyro.cli(StsOptions, args=argv, prog=program, config=config))


def run(options: StsOptions) -> dict[str, Any]:
    """Scores the model, prints the table, writes the files asked for and returns the result."""
    results.prepare(options.json, options.report)
    chosen = read_tasks(options.data, options.tasks, options.split)
    embedder = options.load("float32")
    result, cosines = score(embedder, chosen, options)
    print_table(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        sts_report.write_report(options.report, result, chosen, cosines, embedder)
    return result


def score(
    embedder: Any, chosen: Sequence[Task], options: StsOptions
) -> tuple[dict[str, Any], scores.Cosines]:
    """Scores an embedder; what `--json` gets, and the cosines of every task."""
    start = time.perf_counter()
    cosines = _cosines(options, embedder, chosen)
    result = {
        **results.header(embedder),
        **scores.score_tasks(chosen, cosines),
        "clean": not options.raw,
        "strict_original": options.strict_original,
        "pairs": sum(map(len, chosen)),
        "seconds": round(time.perf_counter() - start, 3),
        **results.record(embedder, options),
        "examples": examples(chosen, cosines),
    }
    return result, cosines


def _cosines(options: StsOptions, embedder: Any, chosen: Sequence[Task]) -> scores.Cosines:
    clean = not options.raw
    if options.strict_original is None:
        return scores.task_cosines(embedder, chosen, clean=clean)
    half = options.strict_original == "float16"
    return original.task_cosines(embedder, chosen, clean=clean, half=half)


def examples(
    chosen: Sequence[Task], cosines: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns gold and cosine of each pair by task, what `prompteol compare` reads."""
    return {
        task.name: {
            "gold": np.concatenate([pairs.gold for pairs in task.subsets]),
            "cosine": np.concatenate(cosines[task.name]),
        }
        for task in chosen
    }


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the scores under a header that names model, template and dtype."""
    from rich import console, table, text

    grid = table.Table(title=text.Text(results.title(result)), title_justify="left")
    for name in sts_report.COLUMNS:
        grid.add_column(name, justify="left" if name == "task" else "right")
    for row in sts_report.score_rows(result):
        grid.add_row(*row)
    grid.add_section()
    grid.add_row("average", str(result["pairs"]), f"{result['average']:.2f}", style="bold")
    console.Console().print(grid)
