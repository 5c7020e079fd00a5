"""Scores next to published ones: the cells of a table, its page, and a part of other pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from eval.reproduce import published
from eval.reproduce.published import Row
from eval.shared import charts, terminal
from eval.shared import html as report
from eval.sts import original

COLUMNS: Final = ("task", "ours", "published", "difference", "verdict")


def beside(result: Mapping[str, Any]) -> str:
    """Return the part of a page with published scores of the same model, and averages by size."""
    table = published.table_of(result)
    row = published.match(
        table, result["model"], result["template"], result.get("adapter"), result.get("quantize")
    )
    cells = published.cells(result, row, table)
    if row is None:
        return report.paragraph("For this model, template and adapter none found.") + _by_size(
            result, table
        )
    lines = []
    for cell in cells:
        known = cell.published is not None
        derived = " (derived)" if cell.task == "average" and row.derived else ""
        shown = f"{cell.published:.2f}{derived}" if known else "not compared"
        shown = shown if known or cell.why_not else "none found"
        lines.append(
            (cell.task, f"{cell.ours:.2f}", shown, f"{cell.difference:+.2f}" if known else "–")
        )
    content = report.table(("task", "ours", "published", "difference"), lines)
    for cell in cells:
        if cell.why_not:
            content += report.paragraph(f"{cell.task} is not compared: {cell.why_not}.")
    if row.source:
        content += report.paragraph(f"Source: {row.source}")
    return content + _by_size(result, table)


def _by_size(result: Mapping[str, Any], table: str) -> str:
    parameters = (result.get("provenance") or {}).get("model", {}).get("parameters")
    if not parameters or not published.is_whole(result, table) or published.unlike(result):
        return ""
    caption = f"Average against parameters; published: OPT in table {table}"
    series = {
        "published": published.averages_by_size(table),
        "ours": {float(parameters): result["average"]},
    }
    return report.figure(charts.by_size(series), caption)


def print_cells(result: Mapping[str, Any]) -> None:
    """Print a table for every row, and why a row could not be run."""
    terminal.print_line(_title(result))
    for row in result["rows"]:
        if not row["reason"]:
            rows = cell_rows(row)
            terminal.print_table(row_name(row), COLUMNS, rows, left=("task", "verdict"))
            for line in _not_compared(row):
                terminal.print_line(line)
    for name, reason in _missing(result["rows"]):
        terminal.print_line(f"{name} is not available: {reason}")
    terminal.print_line(summary(result))


def cell_rows(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the cells of a row that was run, in the order of `COLUMNS`."""
    lines = []
    for cell in row["cells"]:
        theirs = "not compared" if cell["why_not"] else "none found"
        if cell["published"] is not None:
            theirs = f"{cell['published']:.2f}" + (" (derived)" if cell["derived"] else "")
        difference, verdict = "–", "–"
        if cell["difference"] is not None:
            difference = f"{cell['difference']:+.2f}"
            verdict = "within" if cell["within"] else "outside"
        lines.append((cell["task"], f"{cell['ours']:.2f}", theirs, difference, verdict))
    return lines


def _not_compared(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{cell['task']} is not compared: {cell['why_not']}"
        for cell in row["cells"]
        if cell["why_not"]
    ]


def row_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row that was turned into plain fields."""
    return Row(row["model"], quantize=row["quantize"], method=row["method"]).name


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(row_name(row), row["reason"]) for row in rows if row["reason"]]


def summary(result: Mapping[str, Any]) -> str:
    """Return a line on how many cells are within the band."""
    cells = [cell for row in result["rows"] for cell in row["cells"]]
    compared = [cell["within"] for cell in cells if cell["within"] is not None]
    missing = sum(bool(row["reason"]) for row in result["rows"])
    line = f"{sum(compared)} of {len(compared)} compared cells within {result['band']} points"
    return line + (f"; {missing} of {len(result['rows'])} rows not available" if missing else "")


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a table: cells, ours against published, and averages against size."""
    sections = [
        (
            row_name(row),
            report.table(COLUMNS, cell_rows(row))
            + "".join(report.paragraph(line) for line in _not_compared(row)),
        )
        for row in result["rows"]
        if not row["reason"]
    ]
    if panels := _panels(result):
        sections.append(("Figures", report.grid(panels, column_rem=24)))
    if missing := _missing(result["rows"]):
        sections.append(("Not available", report.table(("model", "reason"), missing)))
    sections.append(("Sources of the published figures", _sources(result["rows"])))
    sections.append(("What the released script does to numbers", quirks(result["strict_original"])))
    facts = {
        "cells": summary(result),
        "dtype": result["options"]["dtype"],
        "data": str(result["options"]["data"]),
        "made": f"{result['date']}, version {result['version']}",
    }
    report.write_page(path, _title(result), facts, sections)


def _panels(result: Mapping[str, Any]) -> list[str]:
    done = [row for row in result["rows"] if not row["reason"]]
    cells = [cell for row in done for cell in row["cells"] if cell["within"] is not None]
    panels = []
    if cells:
        pairs = [(cell["published"], cell["ours"]) for cell in cells]
        panels.append(report.figure(charts.against_published(pairs), "Ours against published"))
    if result["table"] not in published.TABLES:  # one of methods, of few sizes
        return panels
    series = {"published": published.averages_by_size(result["table"])}
    for row in done:
        if row["parameters"] and not row["cells"][-1]["why_not"]:
            name = f"ours, {row['quantize']}" if row["quantize"] else "ours"
            size, average = float(row["parameters"]), row["cells"][-1]["ours"]
            # Two models of one size are two points.
            while size in series.setdefault(name, {}):
                size *= 1.001
            series[name][size] = average
    if any(series.values()):
        panels.append(report.figure(charts.by_size(series), "Average against model size"))
    return panels


def quirks(on: Sequence[str]) -> str:
    """Render the table of quirks, with those that this run had on."""
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
