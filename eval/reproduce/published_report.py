"""The part of a page that holds scores against those that were published."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from eval.reproduce import published
from eval.shared import charts
from eval.shared import html as report


def beside(result: Mapping[str, Any], table: str) -> str:
    """Shows what was published for this model in a table, and the averages of OPT by size."""
    options = result["options"]
    row = published.match(
        table,
        *(result["model"], result["template"], options.get("adapter"), options.get("quantize")),
    )
    lines = []
    for name, ours in (*result["scores"].items(), ("average", result["average"])):
        theirs = None
        if row is not None:
            theirs = row.average if name == "average" else row.scores.get(name)
        derived = " (derived)" if name == "average" and row and row.derived else ""
        known = theirs is not None
        shown = f"{theirs:.2f}{derived}" if known else "none found"
        lines.append((name, f"{ours:.2f}", shown, f"{ours - theirs:+.2f}" if known else "–"))
    source = f"<p>Source: {html.escape(row.source)}</p>" if row and row.source else ""
    cells = report.table(("task", "ours", "published", "difference"), lines)
    return cells + source + _by_size(result, table)


def _by_size(result: Mapping[str, Any], table: str) -> str:
    parameters = result["provenance"]["model"].get("parameters")
    if set(result["scores"]) != set(published.tasks_of(table)) or not parameters:
        return ""
    caption = f"Average against parameters; published: OPT in table {table}"
    sizes = published.averages_by_size(table)
    ours = {float(parameters): result["average"]}
    return report.figure(charts.by_size(sizes, ours), caption)
