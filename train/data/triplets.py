# SPDX-License-Identifier: Apache-2.0
"""Training rows: triplets and pairs, read from csv and jsonl files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from prompteol_jax.errors import NotFound, UserError, listed_lines
from prompteol_jax.storage import tables
from prompteol_jax.storage.tables import Bad

COLUMNS: Final = ("sent0", "sent1", "hard_neg")
SUFFIXES: Final = (".csv", ".jsonl", ".json")
_UNEVEN: Final = {
    True: "no hard_neg, but the rows before it have one; give it in all rows or in none",
    False: "a hard_neg, but the rows before it have none; give it in all rows or in none",
}


class Triplet(NamedTuple):
    """A sentence, one that follows from it, and one that contradicts it (None in pairs)."""

    sent0: str
    sent1: str
    hard_neg: str | None


class FileTriplets(list[Triplet]):
    """Triplets in the order of their file, and the line, from 1, that each begins at."""

    def __init__(self, lines: dict[int, Triplet]):
        super().__init__(lines.values())
        self.lines = list(lines)


@dataclass(frozen=True)
class ReadTriplets:
    """What a file held: its triplets in file order, and the number of malformed rows dropped."""

    triplets: list[Triplet]
    skipped: int


def read_triplets(path: Path, *, skip_bad: bool = False) -> ReadTriplets:
    """Read triplets from a .csv with a header or a .jsonl or .json file of one object a line.

    The columns are sent0, sent1 and hard_neg; the last may be left out, for all rows together.
    Blank lines are no rows.

    Args:
        skip_bad: whether to drop malformed rows and count them, where the default is to refuse the
            file.
    Raises:
        NotFound: the path is not there.
        UserError: not a csv or jsonl file, a wrong header, no usable row, or (all in one error)
            rows with missing, empty or extra cells, broken JSON or text that is not UTF-8. A quote
            that is never closed hides all later rows, so skip_bad does not cover it.
    """
    _check_file(path)
    rows: dict[int, Triplet] = {}
    bad: dict[int, Bad] = {}
    has_negatives: bool | None = None
    for line, cells in tables.read_rows(path, lambda cells: _checked_header(cells, path)):
        found = cells if isinstance(cells, Bad) else _triplet(cells)
        if isinstance(found, Triplet):
            negative = found.hard_neg is not None
            has_negatives = negative if has_negatives is None else has_negatives
            if negative == has_negatives:
                rows[line] = found
                continue
            found = Bad(_UNEVEN[has_negatives])
        bad[line] = found
    hidden = any(problem.ends_file for problem in bad.values())
    if bad and (hidden or not skip_bad):
        raise UserError(_report(path, bad, hidden=hidden))
    if not rows:
        detail = f" ({len(bad)} malformed)" if bad else ""
        raise UserError(f"{path} holds no triplet{detail}. It needs at least one row.")
    return ReadTriplets(FileTriplets(rows), skipped=len(bad))


def _check_file(path: Path) -> None:
    kinds = ", ".join(SUFFIXES)
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give one {kinds} file of triplets.")
    if not path.exists():
        raise NotFound(f"No file {path}. Give a {kinds} file of triplets.")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: unknown kind of file {path.suffix!r}. Triplets are read from {kinds}; rename "
            "or convert the file."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty. It needs rows with {', '.join(COLUMNS)}.")


def _checked_header(cells: Sequence[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if sorted(names) not in (sorted(COLUMNS), sorted(COLUMNS[:2])):
        shown = ascii(",".join(cells)[:200])
        raise UserError(
            f"{path}: its first line is {shown}. A csv of triplets starts with the header "
            f"'sent0,sent1,hard_neg', or 'sent0,sent1' for pairs without hard negatives."
        )
    return names


def _triplet(cells: dict[str, Any]) -> Triplet | Bad:
    if cells.get("hard_neg", "") is None:  # a null negative says the same as none
        cells = {name: cell for name, cell in cells.items() if name != "hard_neg"}
    problems = [f"no {name}" for name in COLUMNS[:2] if name not in cells]
    for name, cell in cells.items():
        if name not in COLUMNS:
            problems.append(f"unknown {ascii(name)[:60]} (allowed: {', '.join(COLUMNS)})")
        elif not isinstance(cell, str):
            problems.append(f"{name} is a {type(cell).__name__}, not a string")
        elif not cell.strip():
            problems.append(f"empty {name}")
        elif not tables.is_utf8(cell):
            problems.append(f"{name} is not UTF-8")
    if problems:
        return Bad("; ".join(problems))
    return Triplet(cells["sent0"], cells["sent1"], cells.get("hard_neg"))


def _report(path: Path, bad: dict[int, Bad], *, hidden: bool) -> str:
    shown = listed_lines(f"line {line}: {problem.what}" for line, problem in bad.items())
    if hidden:
        advice = "Close the quote: everything after it was read as one cell."
    else:
        advice = "Correct them, or drop them with --skip-bad."
    rows = "row is" if len(bad) == 1 else "rows are"
    return f"{path}: {len(bad)} {rows} malformed.{shown}\n{advice}"
