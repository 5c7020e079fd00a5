# SPDX-License-Identifier: Apache-2.0
"""Training rows: triplets, pairs, graded pairs and sentences, read from files and checked."""

from __future__ import annotations

import functools
import math
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from prompteol_jax.errors import UserError, listed, listed_lines
from prompteol_jax.storage import tables
from prompteol_jax.storage.tables import Bad
from train.data import files
from train.data.columns import SCORE, is_negative

COLUMNS: Final = ("sent0", "sent1", "hard_neg")
_SHOWN: Final = "sent0, sent1, hard_neg"  # and hard_neg_2, hard_neg_3, ..., score


class Triplet(NamedTuple):
    """A sentence, one that follows from it, and one that contradicts it (None in pairs)."""

    sent0: str
    sent1: str
    hard_neg: str | None


@functools.cache
def row_class(columns: tuple[str, ...]) -> Any:
    """Return the class of rows with these columns, a named tuple of them."""
    if columns in (COLUMNS, COLUMNS[:2]):
        return functools.partial(Triplet, **({} if columns == COLUMNS else {COLUMNS[2]: None}))
    return namedtuple("Row", columns)


def columns_of(row: Any) -> tuple[str, ...]:
    """Return the columns that a row holds."""
    return tuple(name for name in row._fields if getattr(row, name) is not None)


class FileTriplets(list[Any]):
    """Rows in the order of their file, and the line, from 1, that each begins at."""

    def __init__(self, lines: dict[int, Any]):
        super().__init__(lines.values())
        self.lines = list(lines)


@dataclass(frozen=True)
class ReadTriplets:
    """What a file held: its rows in file order, and the number of malformed ones dropped."""

    triplets: list[Any]
    skipped: int


def read_triplets(
    path: Path, *, skip_bad: bool = False, columns: Mapping[str, str] | None = None
) -> ReadTriplets:
    """Read rows from a file or folder of any kind that `train.data.files` knows.

    The columns are sent0, sent1, hard_neg (with hard_neg_2 and so on for more of them) and score, a
    number or a list of numbers. All but sent0 may be left out, for all rows together. Blank lines
    are no rows.

    Args:
        skip_bad: whether to drop malformed rows and count them, where the default is to refuse the
            file.
        columns: the file's name of each column, where they are others; further columns of the file
            are passed over then.
    Raises:
        NotFound: the path is not there.
        UserError: another kind of file, a wrong header, no usable row, or (all in one error)
            rows with missing, empty or extra cells, broken JSON or text that is not UTF-8. A quote
            that is never closed hides all later rows, so skip_bad does not cover it.
    """
    rows: dict[int, Any] = {}
    bad: dict[int, Bad] = {}
    present: tuple[str, ...] | None = None
    for line, cells in _renamed(path, columns):
        found = cells if isinstance(cells, Bad) else _row(cells, present)
        if isinstance(found, Bad):
            bad[line] = found
        else:
            rows[line], present = found, columns_of(found)
    hidden = any(problem.ends_file for problem in bad.values())
    if bad and (hidden or not skip_bad):
        raise UserError(_report(path, bad, hidden=hidden))
    if not rows:
        detail = f" ({len(bad)} malformed)" if bad else ""
        raise UserError(f"{path} holds no triplet{detail}. It needs at least one row.")
    found = FileTriplets(rows) if files.has_lines(path) else list(rows.values())
    return ReadTriplets(found, skipped=len(bad))


def sorted_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return columns in the order of a row: texts, hard negatives by number, the score."""
    return tuple(sorted(columns, key=_rank))


def renamed(columns: Sequence[str]) -> dict[str, str] | None:
    """Return the file's name of each column, from texts `NAME=FILE'S NAME`; None for the same.

    Raises: UserError for a text of another form, or a name that is no column.
    """
    pairs = [text.partition("=") for text in columns]
    wrong = [
        text
        for text, (ours, _, its) in zip(columns, pairs, strict=True)
        if not (its and _is_known(ours))
    ]
    if wrong or len({ours for ours, *_ in pairs}) < len(pairs):
        raise UserError(
            f"--columns {' '.join(columns)}: give NAME=FILE'S NAME, each NAME one time, of "
            f"{_SHOWN}, hard_neg_2, ..., score"
        )
    return {ours: its for ours, _, its in pairs} or None


def count_duplicates(rows: Sequence[Any]) -> int:
    """Return the number of rows that an earlier one equals."""
    return len(rows) - len(set(rows))


def _renamed(path: Path, columns: Mapping[str, str] | None) -> Iterator[tables.Row]:
    """Yield the rows of a file under our names of its columns."""
    if columns is None:
        yield from files.rows_of(path, lambda cells: _checked_header(cells, path))
        return
    for line, cells in files.rows_of(path, lambda cells: _named_header(cells, columns, path)):
        if isinstance(cells, Bad):
            yield line, cells
        else:
            yield line, {ours: cells[its] for ours, its in columns.items() if its in cells}


def _named_header(cells: Sequence[str], columns: Mapping[str, str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    missing = [name for name in columns.values() if names.count(name) != 1]
    if missing:
        raise UserError(
            f"--columns names {listed(missing)}, and {path} has the columns {listed(names)}, each "
            "of which is needed one time"
        )
    return names


def _checked_header(cells: Sequence[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    alone = names == ["sent0"]
    known = all(_is_known(name) for name in names) and len(set(names)) == len(names)
    if not (alone or (known and {"sent0", "sent1"} <= {*names})):
        shown = ascii(",".join(cells)[:200])
        raise UserError(
            f"{path}: its first line is {shown}. A csv of triplets starts with the header "
            f"'sent0,sent1,hard_neg', or 'sent0,sent1' for pairs without hard negatives, which "
            "hard_neg_2 and score may follow; --columns takes other names."
        )
    return names


def _is_known(name: str) -> bool:
    return name in COLUMNS or name == SCORE or is_negative(name)


def _row(cells: dict[str, Any], present: tuple[str, ...] | None) -> Any:
    """Return a row, or what is wrong with it; all rows have the columns of the first one."""
    # A null negative says the same as none.
    cells = {k: v for k, v in cells.items() if v is not None or not is_negative(k)}
    needed = COLUMNS[: 1 if cells.keys() == {"sent0"} else 2]
    problems = [f"no {name}" for name in needed if name not in cells]
    for name, cell in cells.items():
        if name == SCORE:
            cells = {**cells, name: _score(cell)}
            problems += ["score is no number"] * (cells[name] is None)
        else:
            problems += _text_problems(name, cell)
    if problems:
        return Bad("; ".join(problems))
    columns = sorted_columns(cells)
    if present is not None and columns != present:
        return Bad(_uneven(columns, present))
    return row_class(columns)(*(cells[name] for name in columns))


def _rank(name: str) -> tuple[int, str]:
    if name in COLUMNS:
        return COLUMNS.index(name), name
    return (int(name.rpartition("_")[2]), name) if is_negative(name) else (10**6, name)


def _text_problems(name: str, cell: Any) -> list[str]:
    if not _is_known(name):
        return [f"unknown {ascii(name)[:60]} (allowed: {_SHOWN})"]
    if not isinstance(cell, str):
        return [f"{name} is a {type(cell).__name__}, not a string"]
    if not cell.strip():
        return [f"empty {name}"]
    return [] if tables.is_utf8(cell) else [f"{name} is not UTF-8"]


def _score(cell: Any) -> float | tuple[float, ...] | None:
    """Return a score, or a list of them; None for what is neither."""
    if isinstance(cell, list):
        scores = [_score(one) for one in cell]
        good = bool(scores) and all(isinstance(one, float) for one in scores)
        return tuple(scores) if good else None  # type: ignore[arg-type]
    try:
        value = float(cell) if isinstance(cell, str | int | float) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and not isinstance(cell, bool) else None


def _uneven(columns: tuple[str, ...], present: tuple[str, ...]) -> str:
    problems = [
        *(
            f"no {name}, but the rows before it have one; give it in all rows or in none"
            for name in present
            if name not in columns
        ),
        *(
            f"a {name}, but the rows before it have none; give it in all rows or in none"
            for name in columns
            if name not in present
        ),
    ]
    return "; ".join(problems)


def _report(path: Path, bad: dict[int, Bad], *, hidden: bool) -> str:
    shown = listed_lines(f"line {line}: {problem.what}" for line, problem in bad.items())
    if hidden:
        advice = "Close the quote: everything after it was read as one cell."
    else:
        advice = "Correct them, or drop them with --skip-bad."
    rows = "row is" if len(bad) == 1 else "rows are"
    return f"{path}: {len(bad)} {rows} malformed.{shown}\n{advice}"
