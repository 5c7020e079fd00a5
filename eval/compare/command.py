"""The command `prompteol compare`: differences of two result files, and which of them are noise.

Both files must hold the same tasks with the same gold. A difference whose bootstrap interval holds
zero is noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import tyro

from eval.shared import bootstrap, results
from eval.shared.bootstrap import Examples
from prompteol_jax.errors import UserError

MEASURES: Final = {"cosine": "100 x Spearman", "predicted": "accuracy, %"}
FEWEST: Final = 100  # resamples


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compares two result files of one evaluation: differences, their intervals, what is noise."""

    files: Annotated[
        tyro.conf.Positional[tuple[Path, Path]], tyro.conf.arg(metavar="A.json B.json")
    ]
    """Result files of eval.sts or eval.transfer."""
    resamples: int = 10_000
    """Bootstrap resamples."""
    confidence: float = 0.95
    """Share of the resampled differences that an interval holds."""
    seed: int = 0
    """Of the resamples."""
    json: Path | None = None
    """File for the differences and their intervals."""


def run(options: CompareOptions) -> dict[str, Any]:
    """Compares two files, prints the table, writes the file asked for and returns the result."""
    results.prepare(options.json)
    _check(options)
    a, b = (results.read(path) for path in options.files)
    check_comparable(options.files, a, b)
    found = bootstrap.compare(
        a["examples"],
        b["examples"],
        resamples=options.resamples,
        confidence=options.confidence,
        seed=options.seed,
    )
    result = {
        "a": _source(options.files[0], a),
        "b": _source(options.files[1], b),
        "measure": MEASURES[bootstrap.statistic_of(a["examples"])],
        "tasks": {name: dataclasses.asdict(part) for name, part in found.items()},
        "resamples": options.resamples,
        "confidence": options.confidence,
        "seed": options.seed,
    }
    result["average"] = result["tasks"].pop("average")
    print_table(result)
    if options.json:
        results.write(options.json, result)
    return result


def check_comparable(files: Sequence[Path], a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Checks that two results hold the same tasks with the same gold.

    Raises:
        UserError: all that differs, in one error.
    """
    kinds = {"gold", *MEASURES}
    empty = [
        f"{path} holds no examples; run its evaluation again with --json"
        for path, result in zip(files, (a, b), strict=True)
        if not (
            isinstance(result.get("examples"), dict)
            and result["examples"]
            and all(len(kinds & set(part)) == 2 for part in result["examples"].values())
        )
    ]
    problems = empty or _differences(files, a["examples"], b["examples"])
    if problems:
        raise UserError("these files cannot be compared:\n  " + "\n  ".join(problems))


def _differences(
    files: Sequence[Path], a: Mapping[str, Examples], b: Mapping[str, Examples]
) -> list[str]:
    problems = [
        f"{path} lacks {', '.join(missing)}"
        for path, own, other in ((files[0], a, b), (files[1], b, a))
        if (missing := [name for name in other if name not in own])
    ]
    for name in (name for name in a if name in b):
        gold_a, gold_b = a[name]["gold"], b[name]["gold"]
        if set(a[name]) != set(b[name]):
            problems.append(f"{name}: one file holds cosines, the other one predictions")
        elif len(gold_a) != len(gold_b):
            problems.append(f"{name}: {len(gold_a)} examples, and {len(gold_b)}")
        elif (wrong := np.count_nonzero(gold_a != gold_b)) > 0:
            problems.append(f"{name}: {wrong} of {len(gold_a)} gold values differ")
    return problems


def print_table(result: Mapping[str, Any]) -> None:
    """Prints both scores, the difference, its interval and the verdict, task by task."""
    from rich import console, table, text

    names = [f"{side.upper()}: {result[side]['title']}" for side in ("a", "b")]
    grid = table.Table(
        title=text.Text("\n".join([*names, result["measure"]])), title_justify="left"
    )
    share = f"{100 * result['confidence']:g} % interval"
    for name in ("task", "A", "B", "B - A", share, "verdict"):
        grid.add_column(name, justify="left" if name in ("task", "verdict") else "right")
    for name, part in result["tasks"].items():
        grid.add_row(*_cells(name, part))
    grid.add_section()
    grid.add_row(*_cells("average", result["average"]), style="bold")
    console.Console().print(grid)


def _cells(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = (
        "noise" if part["noise"] else "B is better" if part["difference"] > 0 else "A is better"
    )
    interval = f"{part['low']:+.2f} to {part['high']:+.2f}"
    scores = f"{part['a']:.2f}", f"{part['b']:.2f}", f"{part['difference']:+.2f}"
    return name, *scores, interval, verdict


def _source(path: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": str(path), "title": results.title(result)}


def _check(options: CompareOptions) -> None:
    problems = []
    missing = [str(path) for path in options.files if not path.is_file()]
    if missing:
        problems.append(f"no file {', '.join(missing)}")
    if options.resamples < FEWEST:
        problems.append(f"--resamples {options.resamples}, expected {FEWEST} or more")
    if not 0 < options.confidence < 1:
        problems.append(f"--confidence {options.confidence}, expected between 0 and 1")
    if options.seed < 0:
        problems.append(f"--seed {options.seed}, expected 0 or more")
    if problems:
        raise UserError("; ".join(problems))
