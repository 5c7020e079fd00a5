"""The outcome of a sweep: table, verdict, and the page with its heat maps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.shared import charts, results, terminal
from eval.shared import html as report

SHOWN: Final = 30  # first rows of the table of the page
PRINTED: Final = 15
PANELS: Final = 9  # heat maps of one page
NOTE: Final = (
    "100 × Spearman on STS-B dev. Intervals hold 95 % of 1,000 bootstrap resamples of the pairs; "
    "gain is against the method's own prompts without its edits, on the same resamples. The best "
    "of many cells was chosen on these pairs, so it gains less on others."
)


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns of `rows`."""
    return ("rank", *result["axes"], "Spearman", "95 %", "gain", "gain, 95 %")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the cells, best first."""
    return _formatted(result, [(str(n), c) for n, c in enumerate(_ranked(result), start=1)])


def fixed_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the cells that nothing was swept for."""
    found = [(name, result[name]) for name in ("given", "none") if result[name]]
    return _formatted(result, found)


def _formatted(
    result: Mapping[str, Any], lines: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[tuple[str, ...]]:
    return [
        (
            rank,
            *(shown(cell["settings"].get(axis)) for axis in result["axes"]),
            f"{cell['score']:.2f}",
            _interval(cell["interval"]),
            f"{cell['gain']:+.2f}",
            _interval(cell["gain_interval"], "+"),
        )
        for rank, cell in lines
    ]


def shown(value: object) -> str:
    """Format a setting; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_table(result: Mapping[str, Any]) -> None:
    """Print the best cells, and what the sweep found."""
    chosen = [*rows(result)[:PRINTED], *fixed_rows(result)]
    terminal.print_table(results.title(result), columns(result), chosen, left=(), bold=0)
    terminal.print_line(verdict(result))


def verdict(result: Mapping[str, Any]) -> str:
    """Return what the sweep found, in a sentence."""
    best, given = result["best"], result["given"]
    start = f"Without edits the prompts score {result['none']['score']:.2f}, "
    start += f"as given the method scores {given['score']:.2f}; " if given else ""
    if best["name"] == "none":
        return f"{start}no cell of {len(result['cells'])} is better than no edits."
    if best["name"] == "given":
        return f"{start}no cell of {len(result['cells'])} is better than the method as given."
    gain = f"{best['gain']:+.2f} ({_interval(best['gain_interval'], '+')})"
    where = ", ".join(f"{axis} {shown(v)}" for axis, v in best["settings"].items())
    return f"{start}the best of {len(result['cells'])} cells is {where}, {gain} over no edits."


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page: heat maps, the best cells, and the winning record."""
    every, fixed = rows(result), fixed_rows(result)
    facts = {
        **results.facts(result),
        "cells": f"{len(result['cells']):,} in {result['encodings']:,} encodings",
        "pairs": f"{result['pairs']:,}",
        "best": f"{result['best']['score']:.2f}",
    }
    if result["resumed"]:
        facts["time"] += f", without {result['resumed']:,} cells of an earlier run"
    maps = heat_maps(result)
    drawn = report.grid(maps, column_rem=24) if len(maps) > 1 else "".join(maps)
    sections = [
        ("Scores", drawn + report.paragraph(verdict(result)) + report.paragraph(NOTE)),
        ("Best cells", report.table(columns(result), [*every[:SHOWN], *fixed])),
        ("The winning record", report.table(("record",), [(result["record"],)])),
    ]
    if len(every) > SHOWN:
        sections.insert(2, ("Worst cells", report.table(columns(result), every[-SHOWN // 2 :])))
    report.write_page(path, results.page_title("Search", result), facts, sections)


def heat_maps(result: Mapping[str, Any]) -> list[str]:
    """Draw the two axes with the most values against each other, a panel for the others' values.

    Where that would be more than `PANELS`, one panel has the best score over the others. A sweep
    along one axis is a line.
    """
    axes = {name: list(values) for name, values in result["axes"].items()}
    names = sorted(axes, key=lambda name: -len(axes[name]))
    if len(names) == 1:
        return [_line(result, names[0], axes[names[0]])]
    x, y, *others = names
    combinations = list(itertools.product(*(axes[name] for name in others)))
    if len(combinations) > PANELS:
        combinations = [()]
    scores = [cell["score"] for cell in result["cells"]]
    limits = (min(scores), max(scores))
    panels = []
    for values in combinations:
        fixed = dict(zip(others, values, strict=True)) if values or not others else {}
        table = _table(result, (y, axes[y]), (x, axes[x]), fixed)
        drawing = charts.heat(
            table,
            [shown(v) for v in axes[y]],
            [shown(v) for v in axes[x]],
            xlabel=x,
            ylabel=y,
            limits=limits,
        )
        said = ", ".join(f"{name} {shown(value)}" for name, value in fixed.items())
        said = said or (f"best over {' and '.join(others)}" if others else f"{y} against {x}")
        panels.append(report.figure(drawing, said))
    return panels


def _line(result: Mapping[str, Any], name: str, values: Sequence[Any]) -> str:
    by_value = {cell["settings"][name]: cell["score"] for cell in result["cells"]}
    points = [value for value in values if value in by_value]
    drawing = charts.lines(
        points,
        {"method": [by_value[value] for value in points]},
        marked=max(points, key=lambda value: by_value[value]),
        xlabel=name,
        ylabel="100 × Spearman",
    )
    return report.figure(drawing, f"Spearman against {name}; the dotted line is at the best one")


def _table(
    result: Mapping[str, Any],
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
    fixed: Mapping[str, Any],
) -> np.ndarray:
    """Return the best score for each pair of values among the cells with the fixed settings."""
    (y, ys), (x, xs) = rows, columns
    table = np.full((len(ys), len(xs)), np.nan)
    for cell in result["cells"]:
        settings = cell["settings"]
        if all(settings[name] == value for name, value in fixed.items()):
            at = ys.index(settings[y]), xs.index(settings[x])
            table[at] = np.fmax(table[at], cell["score"])
    return table


def _ranked(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(result["cells"], key=lambda cell: -cell["score"])


def _interval(bounds: Sequence[float] | None, sign: str = "") -> str:
    return "–" if bounds is None else " to ".join(format(bound, f"{sign}.2f") for bound in bounds)
