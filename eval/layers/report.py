"""The table of eval.layers, and its page: scores against the layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from eval.shared import charts, results, terminal
from eval.shared import html as report

NOTE: Final = (
    "100 × Spearman. A layer has the number of its entry in hidden_states, which --layer takes; "
    "negative numbers count from the end. Inner layers are raw, the last one is behind the final "
    "norm. ± is half the width of the 95 % interval of the last column of scores, from 1,000 "
    "bootstrap resamples of the pairs."
)


def print_scores(result: Mapping[str, Any]) -> None:
    """Print the scores of every layer, the best one bold."""
    title, names = _title(result), columns(result)
    bold = result["best"]["layer"] - 1
    terminal.print_table(title, names, score_rows(result), left=(), bold=bold)


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page."""
    best, rows = result["best"], result["layers"]
    summary = {
        **results.facts(result),
        "layer": "all",
        "pairs": f"{result['pairs']:,}",
        "best": f"layer {best['layer']} of {len(rows)}, {best['average']:.2f}",
    }
    series = {task: [row["scores"][task] for row in rows] for task in rows[0]["scores"]}
    if len(series) > 1:
        series["average"] = [row["average"] for row in rows]
    drawing = charts.lines(
        [row["layer"] for row in rows],
        series,
        marked=best["layer"],
        xlabel="layer",
        ylabel="100 × Spearman",
    )
    caption = "Spearman of every layer; the dotted line is at the best one"
    sections = [
        ("Score by layer", report.figure(drawing, caption) + report.paragraph(NOTE)),
        ("Scores", report.table(columns(result), score_rows(result))),
    ]
    report.write_page(path, results.page_title("Layers", result), summary, sections)


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns of `score_rows`."""
    tasks = tuple(result["layers"][0]["scores"])
    average = ("average",) if len(tasks) > 1 else ()
    return ("layer", "from the end", *tasks, *average, results.MARGIN)


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the scores of every layer to two decimals."""
    rows = []
    for row in result["layers"]:
        tasks = [f"{score:.2f}" for score in row["scores"].values()]
        average = [f"{row['average']:.2f}"] if len(tasks) > 1 else []
        margin = results.margin(row, "average")
        rows.append((str(row["layer"]), str(row["from_end"]), *tasks, *average, margin))
    return rows


def _title(result: Mapping[str, Any]) -> str:
    return f"{results.title(result)}, every layer"
