"""The table of eval.mteb, and its page with a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from eval.shared import charts, results, terminal
from eval.shared import html as report

COLUMNS: Final = ("task", "type", "main score")


def print_scores(result: Mapping[str, Any]) -> None:
    """Print the score of each task under a title that names everything that decided it."""
    terminal.print_table(
        results.title(result),
        COLUMNS,
        [_row(name, task) for name, task in result["detail"].items()],
        left=("task", "type"),
        last=_average(result),
    )


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page: the score of each task, by type."""
    facts = {**results.facts(result), "average": f"{result['average']:.2f}"}
    ranked = sorted(result["detail"].items(), key=lambda item: (item[1]["type"], item[0]))
    scores = {name: result["scores"][name] for name, _ in ranked}
    sections = [
        (
            "Scores",
            report.table(
                COLUMNS, [_row(name, task) for name, task in ranked], total=_average(result)
            ),
        ),
        ("Figure", report.figure(charts.bars(scores), "100 × main score")),
    ]
    report.write_page(path, results.page_title("MTEB", result), facts, sections)


def _average(result: Mapping[str, Any]) -> tuple[str, ...]:
    return "average", "", f"{result['average']:.2f}"


def _row(name: str, task: Mapping[str, Any]) -> tuple[str, ...]:
    return name, task["type"], f"{task['score']:.2f}"
