"""The STS report: score tables, gold against cosine for every task, and the pairs ranked worst."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float64

from eval import report
from eval.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: Final = ("task", "pairs", "Spearman", "mean", "weighted", "Pearson")
SHOWN_PAIRS: Final = 8  # at each end of the ranking
SCORES_NOTE: Final = (
    "<p>100 × correlation. Spearman and Pearson are over all subsets of a task joined; mean and "
    "weighted are Spearman averaged over its subsets, evenly and by their pairs.</p>"
)
SCATTER_NOTE: Final = "<p>The line joins the median cosines at each whole gold score.</p>"
RANK_NOTE: Final = (
    "<p>How far a pair's place by cosine lies from its place by gold, in percent of its task: "
    "negative where the model finds too little similarity.</p>"
)


def write_report(
    path: Path,
    result: Mapping[str, Any],
    chosen: Sequence[Task],
    cosines: Mapping[str, Sequence[Float64[np.ndarray, " _"]]],
) -> None:
    """Writes the page of scores: tables, a scatter a task, and the pairs ranked worst."""
    summary = {
        "model": result["model"],
        "template": result["template"],
        "dtype": result["dtype"],
        "sentences": "cleaned" if result["clean"] else "as they are",
        "pairs": f"{result['pairs']:,}",
        "time": f"{result['seconds']:.1f} s",
        "average": f"{result['average']:.2f}",
    }
    panels = [
        report.figure(
            scatter(task, np.concatenate(cosines[task.name])),
            f"{task.name}: Spearman {result['scores'][task.name]:.2f}",
        )
        for task in chosen
    ]
    sections = [
        ("Scores", report.table(COLUMNS, score_rows(result)) + SCORES_NOTE),
        ("Gold similarity against cosine", SCATTER_NOTE + report.grid(panels)),
        ("Pairs most out of rank", RANK_NOTE + _disagreements(chosen, cosines)),
        ("Subsets", _subset_table(result)),
    ]
    report.write_page(path, f"STS: {result['model']}", summary, sections)


def scatter(task: Task, cosines: Float64[np.ndarray, " n"]) -> "Figure":
    """Draws gold against cosine, with the median cosine in each unit of gold."""
    from matplotlib import figure

    gold = np.concatenate([pairs.gold for pairs in task.subsets])
    drawing = figure.Figure(figsize=(3.2, 2.6), layout="constrained")
    axes = drawing.add_subplot()
    axes.scatter(gold, cosines, s=5, alpha=0.25, linewidths=0, color="#3b82c4", rasterized=True)
    unit = np.rint(gold)
    units = np.unique(unit)
    medians = [np.median(cosines[unit == value]) for value in units]
    axes.plot(units, medians, color="#e07b39", marker="o", markersize=4, linewidth=1.5)
    axes.set(xlabel="gold", ylabel="cosine", xlim=(-0.2, 5.2))
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Formats the scores of each task to two decimals, in the order of `COLUMNS`."""
    return [
        (
            name,
            str(detail["pairs"]),
            f"{detail['spearman']['all']:.2f}",
            f"{detail['spearman']['mean']:.2f}",
            f"{detail['spearman']['wmean']:.2f}",
            f"{detail['pearson']['all']:.2f}",
        )
        for name, detail in result["detail"].items()
    ]


def _subset_table(result: Mapping[str, Any]) -> str:
    rows = [
        (
            task,
            name,
            subset["pairs"],
            subset["dropped"],
            f"{subset['spearman']:.2f}",
            f"{subset['pearson']:.2f}",
        )
        for task, detail in result["detail"].items()
        for name, subset in detail["subsets"].items()
    ]
    return report.table(("task", "subset", "pairs", "without gold", "Spearman", "Pearson"), rows)


def _disagreements(
    chosen: Sequence[Task], cosines: Mapping[str, Sequence[Float64[np.ndarray, " _"]]]
) -> str:
    """Lists the pairs whose places in the ranking by cosine and by gold differ most."""
    from scipy import stats

    rows = []
    for task in chosen:
        values = np.concatenate(cosines[task.name])
        gold = np.concatenate([pairs.gold for pairs in task.subsets])
        shift = 100 * (stats.rankdata(values) - stats.rankdata(gold)) / len(gold)
        texts_a = [text for pairs in task.subsets for text in pairs.texts_a]
        texts_b = [text for pairs in task.subsets for text in pairs.texts_b]
        rows += zip([task.name] * len(gold), gold, values, shift, texts_a, texts_b, strict=True)
    rows.sort(key=lambda row: row[3])
    shown = rows[:SHOWN_PAIRS] + rows[SHOWN_PAIRS:][-SHOWN_PAIRS:]
    return report.table(
        ("task", "gold", "cosine", "places off, %", "first sentence", "second sentence"),
        [
            (name, f"{gold:.2f}", f"{value:.3f}", f"{shift:+.0f}", text_a, text_b)
            for name, gold, value, shift, text_a, text_b in shown
        ],
    )
