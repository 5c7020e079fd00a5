"""The table of eval.transfer, and its page: accuracies, published ones, and confusions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.reproduce import report as reproduce_report
from eval.shared import charts, results, terminal
from eval.shared import html as report

COLUMNS: Final = (
    *("task", "tested", "accuracy", results.MARGIN, "development", "majority", "weight decay"),
)
NOTE: Final = (
    "Accuracy in percent of the tested sentences. ± is half the width of its 95 % interval, from "
    "1,000 bootstrap resamples of them; what changes with the seed of a probe is not in it. "
    "Majority is the accuracy of a probe that always says the most frequent class."
)
CONFUSION_NOTE: Final = "Predicted classes in percent of the true one; each row adds up to 100."


def print_scores(result: Mapping[str, Any]) -> None:
    """Print the accuracies under a title that names everything that decided them."""
    terminal.print_table(
        results.title(result), COLUMNS, score_rows(result), last=average_row(result)
    )


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a result, with its examples."""
    facts = {**results.facts(result), "average": f"{result['average']:.2f}"}
    panels = [
        report.figure(
            charts.confusion(it["gold"], it["predicted"], result["detail"][name]["class_names"]),
            f"{name}: accuracy {result['scores'][name]:.2f}",
        )
        for name, it in result["examples"].items()
    ]
    accuracies = report.table(COLUMNS, score_rows(result), total=average_row(result))
    sections = [
        ("Accuracies", accuracies + report.paragraph(NOTE)),
        ("Published scores", reproduce_report.beside(result)),
        ("Confusions", report.paragraph(CONFUSION_NOTE) + report.grid(panels)),
    ]
    report.write_page(path, results.page_title("Transfer", result), facts, sections)


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the accuracies of each task to two decimals, in the order of `COLUMNS`."""
    return [_row(name, parts, result) for name, parts in result["detail"].items()]


def average_row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Format the average over tasks, in the order of `COLUMNS`."""
    tested = sum(detail["examples"] for detail in result["detail"].values())
    scores = f"{result['average']:.2f}", results.margin(result, "average")
    return ("average", str(tested), *scores, "", "", "")


def _row(name: str, parts: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, ...]:
    gold = result["examples"][name]["gold"]
    return (
        name,
        str(parts["examples"]),
        f"{parts['test']:.2f}",
        results.margin(result, name),
        f"{parts['development']:.2f}",
        f"{100 * np.bincount(gold).max() / len(gold):.2f}",
        ", ".join(f"{decay:g}" for decay in sorted(set(parts["decays"]))),
    )
