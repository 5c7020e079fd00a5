"""Runs tasks of MTEB by name, where its hub can be reached.

    python -m eval.mteb --model facebook/opt-2.7b --tasks STS12 Banking77Classification

Needs the extra `mteb`. A prompt may differ by type of task: --task-templates Retrieval=mine.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eval.shared import charts, results
from eval.shared import html as report
from prompteol_jax.cli.commands import run_command
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths
from prompteol_jax.text.template import Template, read_template


@dataclass(frozen=True, kw_only=True)
class MtebOptions(ModelOptions):
    """Runs tasks of MTEB: 100 x the main score of each; float32."""

    tasks: tuple[str, ...]
    """Names of MTEB, such as STS12 Banking77Classification."""
    task_templates: tuple[str, ...] = ()
    """TYPE=TEMPLATE for a type of task; TYPE:query=TEMPLATE, TYPE:document=TEMPLATE for a side."""
    raw: bool = False
    """Encode texts as they are, without the original's punctuation rules."""
    output: Path | None = None
    """Folder for MTEB's own result files; what it holds already is not run again."""
    json: Path | None = None
    """File for the scores and every detail."""
    report: Path | None = None
    """File for a page of HTML with the scores."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    import tyro

    program = "python -m eval.mteb"
    config = (tyro.conf.FlagCreatePairsOff,)
    run_command(program, run, tyro.cli(MtebOptions, args=argv, prog=program, config=config))


def run(options: MtebOptions) -> dict[str, Any]:
    """Runs the tasks, prints the scores, writes the file asked for and returns the result.

    Raises:
        UserError: the extra is not installed, a task is unknown, or a template is wrong.
        ConnectionError: data that could not be fetched.
    """
    if find_spec("mteb") is None:
        raise UserError('mteb is not installed; it is an extra: pip install ".[mteb]"')
    from eval.mteb import encoder as mteb_encoder

    templates = read_task_templates(options.task_templates)
    tasks = mteb_encoder.find_tasks(options.tasks)
    paths.refuse_buckets(options.output)
    results.prepare(options.json, options.report)
    embedder = options.load("float32")
    encoder = mteb_encoder.MtebEncoder(embedder, templates, clean=not options.raw)
    start = time.perf_counter()
    found = mteb_encoder.run_tasks(encoder, tasks, options.output)
    scores = {name: task["score"] for name, task in found.items()}
    result = {
        **results.header(embedder),
        "scores": scores,
        "average": round(sum(scores.values()) / len(scores), 2),
        "detail": found,
        "clean": not options.raw,
        "seconds": round(time.perf_counter() - start, 3),
        "task_templates": {key: chosen.to_json() for key, chosen in templates.items()},
        **results.record(embedder, options),
    }
    print_table(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        write_report(options.report, result)
    return result


def read_task_templates(given: Sequence[str]) -> dict[str, Template]:
    """Reads templates by type of task, or by type and side.

    Raises:
        UserError: what is not TYPE=TEMPLATE, all in one error; as `read_template` for a template.
    """
    wrong = [text for text in given if not all(text.partition("="))]
    if wrong:
        raise UserError(
            f"--task-templates takes TYPE=TEMPLATE such as Retrieval=eol, not {', '.join(wrong)}"
        )
    parts = [text.partition("=") for text in given]
    return {key: read_template(name) for key, _, name in parts}


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the page: the score of each task, by type."""
    facts = {
        "model": result["model"],
        "template": result["template"],
        "dtype": result["dtype"],
        "texts": "cleaned" if result["clean"] else "as they are",
        "time": f"{result['seconds']:.1f} s",
        "average": f"{result['average']:.2f}",
    }
    ranked = sorted(result["detail"].items(), key=lambda item: (item[1]["type"], item[0]))
    rows = [(name, f"{task['score']:.2f}", task["type"]) for name, task in ranked]
    sections = [
        ("Scores", report.table(("task", "score", "type"), rows)),
        ("Figure", report.figure(charts.bars(result["scores"]), "100 × main score")),
    ]
    report.write_page(path, f"MTEB: {Path(result['model']).name}", facts, sections)


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the score of each task under a header that names model, template and dtype."""
    from rich import console, table, text

    grid = table.Table(title=text.Text(results.title(result)), title_justify="left")
    grid.add_column("task")
    grid.add_column("type")
    grid.add_column("main score", justify="right")
    for name, task in result["detail"].items():
        grid.add_row(name, task["type"], f"{task['score']:.2f}")
    grid.add_section()
    grid.add_row("average", "", f"{result['average']:.2f}", style="bold")
    console.Console().print(grid)
