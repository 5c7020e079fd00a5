"""What `eval.reproduce` shows: cells on the terminal, and a page with drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from eval.reproduce import published
from eval.reproduce.published import Row
from eval.shared import charts
from eval.shared import html as report
from eval.sts import original

COLUMNS: Final = ("task", "ours", "published", "difference", "verdict")


def print_cells(result: Mapping[str, Any]) -> None:
    """Prints a table for every row, and why a row could not be run."""
    from rich import console, table, text

    shown = console.Console()
    shown.print(text.Text(_title(result)))
    styles = {"within": "green", "outside": "bold red"}
    for row in result["rows"]:
        if row["reason"]:
            continue
        grid = table.Table(title=text.Text(row_name(row)), title_justify="left")
        for name in COLUMNS:
            grid.add_column(name, justify="left" if name in ("task", "verdict") else "right")
        for *cells, verdict in cell_rows(row):
            grid.add_row(*map(text.Text, cells), text.Text(verdict, styles.get(verdict, "")))
        shown.print(grid)
    for name, reason in _missing(result["rows"]):
        shown.print(text.Text(f"{name} is not available: {reason}"), soft_wrap=True)
    shown.print(text.Text(summary(result)))


def cell_rows(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Formats the cells of a row that was run, in the order of `COLUMNS`."""
    lines = []
    for cell in row["cells"]:
        theirs = "none found" if cell["published"] is None else f"{cell['published']:.2f}"
        theirs += " (derived)" if cell["derived"] else ""
        difference, verdict = "–", "–"
        if cell["difference"] is not None:
            difference = f"{cell['difference']:+.2f}"
            verdict = "within" if cell["within"] else "outside"
        lines.append((cell["task"], f"{cell['ours']:.2f}", theirs, difference, verdict))
    return lines


def row_name(row: Mapping[str, Any]) -> str:
    """Returns the name of a row that was turned into plain fields."""
    return Row(row["model"], quantize=row["quantize"]).name


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(row_name(row), row["reason"]) for row in rows if row["reason"]]


def summary(result: Mapping[str, Any]) -> str:
    """Says in a line how many cells are within the band."""
    cells = [cell for row in result["rows"] for cell in row["cells"]]
    compared = [cell["within"] for cell in cells if cell["within"] is not None]
    missing = sum(bool(row["reason"]) for row in result["rows"])
    line = f"{sum(compared)} of {len(compared)} compared cells within {result['band']} points"
    return line + (f"; {missing} of {len(result['rows'])} rows not available" if missing else "")


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Writes the page of a table: cells, ours against published, and averages against size."""
    sections = [
        (row_name(row), report.table(COLUMNS, cell_rows(row)))
        for row in result["rows"]
        if not row["reason"]
    ]
    cells = [cell for row in result["rows"] for cell in row["cells"]]
    pairs = [(c["published"], c["ours"]) for c in cells if c["within"] is not None]
    panels = []
    if pairs:
        panels.append(report.figure(charts.against_published(pairs), "Ours against published"))
    theirs = published.averages_by_size(result["table"])
    ours = {
        float(row["parameters"]): row["cells"][-1]["ours"]
        for row in result["rows"]
        if row["parameters"] and not row["reason"]
    }
    if theirs or ours:
        panels.append(report.figure(charts.by_size(theirs, ours), "Average against model size"))
    if panels:
        sections.append(("Figures", report.grid(panels)))
    if missing := _missing(result["rows"]):
        sections.append(("Not available", report.table(("model", "reason"), missing)))
    sections.append(("Sources of the published figures", _sources(result["rows"])))
    sections.append(("What the released script does to numbers", quirks(result["strict_original"])))
    facts = {"cells": summary(result), "dtype": result["options"]["dtype"]}
    report.write_page(path, _title(result), facts, sections)


def quirks(on: Sequence[str]) -> str:
    """Renders the table of quirks, with those that this run had on."""
    rows = [
        (
            quirk.name,
            "on" if quirk.here == "always" or quirk.name in on else "off",
            f"{quirk.does} ({quirk.source})" + (f"; here not: {quirk.why}" if quirk.why else ""),
        )
        for quirk in original.QUIRKS
    ]
    return report.table(("quirk", "here", "what it does"), rows)


def _title(result: Mapping[str, Any]) -> str:
    strict = ", as the released script" if result["strict_original"] else ""
    return f"Reproduction of {result['table']}{strict}"


def _sources(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [(row_name(row), row["source"] or "none found", row["note"] or "–") for row in rows]
    return report.table(("model", "source", "note"), lines)
