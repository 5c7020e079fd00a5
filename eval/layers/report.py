"""The page of eval.layers: scores against the layer, as a drawing and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from eval.shared import html as report
from eval.shared import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE: Final = (
    "<p>100 × Spearman. A layer has the number of its entry in hidden_states, given to --layer; "
    "negative numbers count from the end. Inner layers are raw, the last one is behind the final "
    "norm.</p>"
)


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the page."""
    best = result["best"]
    summary = {
        **results.facts(result),
        "pairs": f"{result['pairs']:,}",
        "time": f"{result['seconds']:.1f} s",
        "best": f"layer {best['layer']} of {len(result['layers'])}, {best['average']:.2f}",
    }
    sections = [
        ("Score by layer", report.figure(draw(result), "Spearman of every layer") + NOTE),
        ("Scores", report.table(columns(result), score_rows(result))),
    ]
    report.write_page(path, f"Layers: {result['model']}", summary, sections)


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws each task's score against the layer, and the average where there are several."""
    from matplotlib import figure, ticker

    drawing = figure.Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = drawing.add_subplot()
    rows = result["layers"]
    layers = [row["layer"] for row in rows]
    for task in rows[0]["scores"]:
        axes.plot(layers, [row["scores"][task] for row in rows], marker="o", label=task, alpha=0.8)
    if len(rows[0]["scores"]) > 1:
        average = [row["average"] for row in rows]
        axes.plot(layers, average, color="#000000", linewidth=2, label="average")
    axes.axvline(result["best"]["layer"], color="#888888", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set(xlabel="layer", ylabel="100 x Spearman")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return drawing


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Names the columns of `score_rows`."""
    tasks = tuple(result["layers"][0]["scores"])
    return ("layer", "from the end", *tasks, *(("average",) if len(tasks) > 1 else ()))


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Formats the scores of every layer to two decimals."""
    rows = []
    for row in result["layers"]:
        tasks = [f"{score:.2f}" for score in row["scores"].values()]
        average = [f"{row['average']:.2f}"] if len(tasks) > 1 else []
        rows.append((str(row["layer"]), str(row["from_end"]), *tasks, *average))
    return rows
