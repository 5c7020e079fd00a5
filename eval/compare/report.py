"""The table of `prompteol compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.shared import terminal


def print_comparison(result: Mapping[str, Any]) -> None:
    """Print both files, both scores, the difference, its interval and the verdict of each task."""
    lines = [_named(side, result[side]) for side in ("a", "b")]
    lines += [f"{name}: {a} | {b}" for name, (a, b) in result["differ_in"].items()]
    share = f"{100 * result['confidence']:g} % interval"
    terminal.print_table(
        "\n".join([*lines, result["measure"]]),
        ("task", "A", "B", "B - A", share, "verdict"),
        [_cells(name, part) for name, part in result["tasks"].items()],
        left=("task", "verdict"),
        last=_cells("average", result["average"]),
    )
    for name, part in result["tasks"].items():
        if part["left_out"]:
            terminal.print_line(
                f"{name}: {part['left_out']} of {result['resamples']} resamples have no rank "
                "correlation and are not in the interval"
            )


def _named(side: str, source: Mapping[str, Any]) -> str:
    made = f" ({source['date']}, version {source['version']})" if source["date"] else ""
    return f"{side.upper()}: {source['file']}: {source['title']}{made}"


def _cells(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = (
        "noise" if part["noise"] else "B is better" if part["difference"] > 0 else "A is better"
    )
    interval = f"{part['low']:+.2f} to {part['high']:+.2f}"
    scores = f"{part['a']:.2f}", f"{part['b']:.2f}", f"{part['difference']:+.2f}"
    return name, *scores, interval, verdict
