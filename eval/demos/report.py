"""How the result of a search is shown: its entries, a table, and a page with the distribution."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from eval.demos.search import Standing
from eval.shared import html as report
from eval.shared import results
from prompteol_jax.text.template import Template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: Final = ("rank", "Spearman", "gain", "pairs", "candidate", "demonstrations")
SHOWN: Final = 20  # at the head of the table of the page
PRINTED: Final = 10


def entry(rank: int, standing: Standing) -> dict[str, Any]:
    """Returns a line of the ranking."""
    return {
        "rank": rank,
        "name": standing.template.name,
        "score": round(standing.score, 4),
        "pairs": standing.pairs,
        "shots": standing.shots,
        "demonstrations": [d._asdict() for d in standing.template.demonstrations],
    }


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the best candidates, and how they compare with the template as it is."""
    from rich import console, table, text

    grid = table.Table(title=text.Text(results.title(result)), title_justify="left")
    for name in COLUMNS:
        is_text = name in ("candidate", "demonstrations")
        grid.add_column(name, justify="left" if is_text else "right")
    for row in rows(result)[:PRINTED]:
        grid.add_row(*(text.Text(cell) for cell in row))
    shown = console.Console()
    shown.print(grid)
    shown.print(text.Text(verdict(result)))


def verdict(result: Mapping[str, Any]) -> str:
    """Says in a sentence what the search found."""
    better, total = result["better_than_zero_shot"], result["candidates"]
    gain = result["best"]["score"] - result["zero_shot"]
    found = f"the best gains {gain:+.2f}" if gain > 0 else "none is better than the template as is"
    return (
        f"As it is, the template scores {result['zero_shot']:.2f}; {better} of {total} candidates "
        f"score more on the pairs they were scored on, {found}."
    )


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Formats the ranking in the order of `COLUMNS`."""
    return [
        (
            str(line["rank"]),
            f"{line['score']:.2f}",
            f"{line['score'] - result['zero_shot']:+.2f}",
            str(line["pairs"]),
            line["name"],
            "  ".join(f"{d['text']} → {d['word']}" for d in line["demonstrations"]),
        )
        for line in result["ranking"]
    ]


def write_report(path: Path, result: Mapping[str, Any], best: Template) -> None:
    """Writes the page: the distribution against the template as it is, and the ranking."""
    summary = {
        **results.facts(result),
        "candidates": f"{result['candidates']:,}",
        "pairs": " → ".join(f"{stage:,}" for stage in result["stages"]),
        "time": f"{result['seconds']:.1f} s",
        "without": f"{result['zero_shot']:.2f}",
        "best": f"{result['best']['score']:.2f}",
    }
    if result["operations"]:
        share = result["operations"]["share"]
        summary["cost"] = f"{share:.2f} of the operations of each candidate alone"
    ranked = rows(result)
    sections = [
        (
            "Distribution",
            report.figure(draw(result), "Scores of all candidates") + _paragraph(verdict(result)),
        ),
        ("The best template", report.table(("prompt",), [(best.fill("…"),)])),
        ("Best candidates", report.table(COLUMNS, ranked[:SHOWN])),
    ]
    if len(ranked) > SHOWN:
        sections.append(("Worst candidates", report.table(COLUMNS, ranked[SHOWN:][-SHOWN // 2 :])))
    report.write_page(path, f"Demonstrations: {result['model']}", summary, sections)


def draw(result: Mapping[str, Any]) -> Figure:
    """Draws how many candidates score what, and where the template as it is lies."""
    from matplotlib import figure

    drawing = figure.Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = drawing.add_subplot()
    values = [line["score"] for line in result["ranking"]]
    axes.hist(values, bins=min(40, max(5, len(values) // 4)), color="#3b82c4")
    axes.axvline(result["zero_shot"], color="#e07b39", linewidth=1.5, label="no demonstration")
    axes.axvline(
        result["best"]["score"], color="#4c9f70", linewidth=1.5, linestyle="--", label="best"
    )
    axes.set(xlabel="100 x Spearman", ylabel="candidates")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return drawing


def _paragraph(sentence: str) -> str:
    return f"<p>{html.escape(sentence)}</p>"
