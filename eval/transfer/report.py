"""The transfer page: accuracies and published ones, and what each task takes for what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int

from eval.reproduce import published_report
from eval.shared import charts, results
from eval.shared import html as report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: Final = ("task", "tested", "accuracy", "development", "most frequent class", "decays")


def write_report(
    path: Path,
    result: Mapping[str, Any],
    examples: Mapping[str, Mapping[str, Int[np.ndarray, " n"]]],
) -> None:
    """Writes the page from a result and, by task, the gold and predicted classes."""
    protocol = result["protocol"]
    facts = {
        **results.facts(result),
        "protocol": f"{protocol['folds']} folds, {protocol['optimizer']}, seed {protocol['seed']}",
        "time": f"{result['seconds']:.1f} s",
        "average": f"{result['average']:.2f}",
    }
    rows = [_row(name, parts, examples[name]["gold"]) for name, parts in result["detail"].items()]
    panels = [
        report.figure(_confusion(**classes), f"{name}: accuracy {result['scores'][name]:.2f}")
        for name, classes in examples.items()
    ]
    sections = [
        ("Accuracies", report.table(COLUMNS, rows)),
        ("Beside published scores", published_report.beside(result, "transfer")),
        ("Classes taken for classes, in percent of the true one", report.grid(panels)),
    ]
    report.write_page(path, f"Transfer: {Path(result['model']).name}", facts, sections)


def _row(name: str, parts: Mapping[str, Any], gold: Int[np.ndarray, " n"]) -> tuple[str, ...]:
    return (
        name,
        str(parts["examples"]),
        f"{parts['test']:.2f}",
        f"{parts['development']:.2f}",
        f"{100 * np.bincount(gold).max() / len(gold):.2f}",
        ", ".join(f"{decay:g}" for decay in sorted(set(parts["decays"]))),
    )


def _confusion(gold: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]) -> Figure:
    """Draws, for each true class, the percentage of each predicted one."""
    classes = 1 + int(max(gold.max(), predicted.max()))
    counts = np.zeros((classes, classes))
    np.add.at(counts, (gold, predicted), 1)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawing, axes = charts.empty(2.8, 2.6)
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for true, taken in np.ndindex(classes, classes):
        value = percent[true, taken]
        # The darkest cells need a light number; a grey is read on all others of both pages.
        shade = "#f4f6f8" if value > 60 else "#6b747c"
        axes.text(taken, true, f"{value:.0f}", ha="center", va="center", color=shade, size=8)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(classes), yticks=range(classes))
    return drawing
