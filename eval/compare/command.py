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

from eval.compare import report
from eval.shared import bootstrap, results
from eval.shared.bootstrap import Examples
from prompteol_jax.cli.options import check, flag
from prompteol_jax.errors import NotFound, UserError

MEASURES: Final = {
    "cosine": "100 x Spearman",
    "predicted": "accuracy, %",
    "score": "100 x nDCG@10",
}
# The commands whose files hold examples.
COMPARED: Final = ("eval.sts", "eval.transfer", "eval.retrieval", "eval.loco")
ONE_OF: Final = " or ".join(COMPARED)
NAMES: Final = ("model", "template", "dtype")
FEWEST: Final = 100  # resamples


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare two result files of one evaluation: differences, their intervals, what is noise."""

    files: Annotated[
        tyro.conf.Positional[tuple[Path, Path]], tyro.conf.arg(metavar="A.json B.json")
    ]
    """Result files of eval.sts, eval.transfer, eval.retrieval or eval.loco."""
    resamples: int = flag(10_000, at_least=FEWEST)
    """Bootstrap resamples."""
    confidence: float = flag(bootstrap.CONFIDENCE, above=0, below=1)
    """Share of the resampled differences that an interval holds."""
    seed: int = flag(0, at_least=0)
    """Seed of the resamples."""
    json: Path | None = None
    """File for the differences and their intervals."""


def run(options: CompareOptions) -> dict[str, Any]:
    """Compare two files, print the table, write the file asked for and return the result."""
    check(options)
    if missing := [str(path) for path in options.files if not path.is_file()]:
        raise NotFound(f"no file {', '.join(missing)}; give two files of {ONE_OF}")
    results.prepare(options.json)
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
        "command": "prompteol compare",
        "a": _source(options.files[0], a),
        "b": _source(options.files[1], b),
        "differ_in": _different_settings(a, b),
        "measure": MEASURES[bootstrap.statistic_of(a["examples"])],
        "tasks": {name: dataclasses.asdict(part) for name, part in found.items()},
        "resamples": options.resamples,
        "confidence": options.confidence,
        "seed": options.seed,
    }
    result["average"] = result["tasks"].pop("average")
    report.print_comparison(result)
    if options.json:
        results.write(options.json, result)
    return result


def check_comparable(files: Sequence[Path], a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Check that two results hold the same tasks with the same sentences and gold.

    Raises: UserError naming all that differs.
    """
    problems = [
        problem
        for path, result in zip(files, (a, b), strict=True)
        if (problem := _unusable(path, result))
    ]
    problems = problems or _differences(files, a["examples"], b["examples"])
    if not problems:
        digests = [(result.get("data") or {}).get("sha256") for result in (a, b)]
        if None not in digests and digests[0] != digests[1]:
            problems.append("their gold is the same, but their sentences differ")
    if problems:
        raise UserError("these files cannot be compared:\n  " + "\n  ".join(problems))


def _unusable(path: Path, result: Mapping[str, Any]) -> str | None:
    """Return why a file cannot be compared with any other, or None."""
    command = result.get("command")
    if command not in (None, *COMPARED):
        return f"{path} is a result of {command}; give files of {ONE_OF}"
    lacking = [name for name in NAMES if name not in result]
    if lacking:
        return f"{path} lacks {', '.join(lacking)}; give files of {ONE_OF}"
    examples, kinds = result.get("examples"), {"gold", *MEASURES}
    if not isinstance(examples, dict) or not examples:
        return f"{path} holds no examples; give a file that {ONE_OF} wrote"
    whole = all(
        isinstance(part, dict)
        and len(kinds & set(part)) == 2
        and all(isinstance(values, np.ndarray) and len(values) for values in part.values())
        for part in examples.values()
    )
    return None if whole else f"{path}: its examples are damaged; run its evaluation again"


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
            problems.append(f"{name}: the files hold examples of two kinds of scores")
        elif len(gold_a) != len(gold_b):
            problems.append(f"{name}: {len(gold_a)} examples, and {len(gold_b)}")
        elif (wrong := np.count_nonzero(gold_a != gold_b)) > 0:
            problems.append(f"{name}: {wrong} of {len(gold_a)} gold values differ")
    return problems


def _different_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the settings that differ, each with its value in A and in B."""
    first, second = (results.settings(result) for result in (a, b))
    return {
        name: [first.get(name, "none"), second.get(name, "none")]
        for name in first | second
        if first.get(name) != second.get(name)
    }


def _source(path: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "file": str(path),
        "title": results.title(result),
        "date": result.get("date"),
        "version": result.get("version"),
    }
