# SPDX-License-Identifier: Apache-2.0
"""Training rows: triplets read from csv and jsonl files, and their order over a run's steps."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from prompteol_jax.errors import NotFound, UserError

COLUMNS: Final = ("sent0", "sent1", "hard_neg")
_LISTED: Final = 20
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
class Rows:
    """What a file held: its triplets in file order, and the number of malformed rows dropped."""

    triplets: list[Triplet]
    skipped: int


class _Bad(NamedTuple):
    line: int
    what: str
    ends_file: bool = False


_Cells = Iterator[tuple[int, dict[str, Any] | _Bad]]


def read_triplets(path: Path, *, skip_bad: bool = False) -> Rows:
    """Read triplets from a .csv with a header or a .jsonl or .json file of one object a line.

    The columns are sent0, sent1 and hard_neg; the last may be left out, for all rows together.
    Blank lines are no rows.

    Args:
        skip_bad: drops malformed rows and counts them, where the default is to refuse the file.
    Raises:
        NotFound: the path is not there.
        UserError: not a csv or jsonl file, a wrong header, no usable row, or (all in one error)
            rows with missing, empty or extra cells, broken JSON or text that is not UTF-8. A quote
            that is never closed hides all later rows, so skip_bad does not cover it.
    """
    parse = _parser(path)
    rows: dict[int, Triplet] = {}
    bad: list[_Bad] = []
    has_negatives: bool | None = None
    # Bytes that are not UTF-8 become lone surrogates here, so that _triplet can name their line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, cells in parse(file, path):
            found = cells if isinstance(cells, _Bad) else _triplet(line, cells)
            if isinstance(found, Triplet):
                negative = found.hard_neg is not None
                has_negatives = negative if has_negatives is None else has_negatives
                if negative == has_negatives:
                    rows[line] = found
                    continue
                found = _Bad(line, _UNEVEN[has_negatives])
            bad.append(found)
    if bad and (not skip_bad or bad[-1].ends_file):
        raise UserError(_report(path, bad))
    if not rows:
        detail = f" ({len(bad)} malformed)" if bad else ""
        raise UserError(f"{path} holds no triplet{detail}. It needs at least one row.")
    return Rows(FileTriplets(rows), skipped=len(bad))


def _parser(path: Path) -> Callable[[io.TextIOWrapper, Path], _Cells]:
    parsers = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give one {', '.join(parsers)} file of triplets.")
    if not path.exists():
        raise NotFound(f"No file {path}. Give a {', '.join(parsers)} file of triplets.")
    if path.suffix.lower() not in parsers:
        raise UserError(
            f"{path}: unknown kind of file {path.suffix!r}. Triplets are read from "
            f"{', '.join(parsers)}; rename or convert the file."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty. It needs rows with {', '.join(COLUMNS)}.")
    return parsers[path.suffix.lower()]


def _csv_rows(file: io.TextIOWrapper, path: Path) -> _Cells:
    reader = csv.reader(file, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            unclosed = "end of data" in str(error) or "field limit" in str(error)
            what = "a quote that is never closed" if unclosed else f"broken quoting ({error})"
            yield line, _Bad(line, what, ends_file=unclosed)
            if unclosed:
                return
            continue
        if not cells:
            continue
        if header is None:
            header = _checked_header(cells, path)
        elif len(cells) != len(header):
            yield (
                line,
                _Bad(line, f"{len(cells)} cells where the header names {len(header)}"),
            )
        else:
            yield line, dict(zip(header, cells, strict=True))


def _checked_header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if sorted(names) not in (sorted(COLUMNS), sorted(COLUMNS[:2])):
        shown = ascii(",".join(cells)[:200])
        raise UserError(
            f"{path}: its first line is {shown}. A csv of triplets starts with the header "
            f"'sent0,sent1,hard_neg', or 'sent0,sent1' for pairs without hard negatives."
        )
    return names


def _json_rows(file: io.TextIOWrapper, path: Path) -> _Cells:
    del path
    # Split at "\n" only: a JSON string may hold a bare "\r" or a Unicode line separator.
    file.reconfigure(newline="\n")
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield line, _Bad(line, f"not JSON ({reason}); one object a line is needed")
            continue
        if isinstance(value, dict):
            # A null negative says the same as none.
            yield line, {k: v for k, v in value.items() if (k, v) != ("hard_neg", None)}
        else:
            yield (
                line,
                _Bad(
                    line,
                    f"a JSON {type(value).__name__}, not an object with sent0, sent1",
                ),
            )


def _triplet(line: int, cells: dict[str, Any]) -> Triplet | _Bad:
    problems = [f"no {name}" for name in COLUMNS[:2] if name not in cells]
    for name, cell in cells.items():
        if name not in COLUMNS:
            problems.append(f"unknown {ascii(name)[:60]} (allowed: {', '.join(COLUMNS)})")
        elif not isinstance(cell, str):
            problems.append(f"{name} is a {type(cell).__name__}, not a string")
        elif not cell.strip():
            problems.append(f"empty {name}")
        elif not _encodable(cell):
            problems.append(f"{name} is not UTF-8")
    if problems:
        return _Bad(line, "; ".join(problems))
    return Triplet(cells["sent0"], cells["sent1"], cells.get("hard_neg"))


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _report(path: Path, bad: list[_Bad]) -> str:
    more = len(bad) - _LISTED
    lines = [f"  line {problem.line}: {problem.what}" for problem in bad[:_LISTED]]
    lines += [f"  ... and {more} more"] if more > 0 else []
    if bad[-1].ends_file:
        advice = "Close the quote: everything after it was read as one cell."
    else:
        advice = "Correct them, or drop them with skip_bad."
    rows = "row is" if len(bad) == 1 else "rows are"
    return "\n".join([f"{path}: {len(bad)} {rows} malformed.", *lines, advice])


class Batches:
    """The rows of every step: a pure function of the rows, the seed and the step.

    Each epoch is its own permutation, divided into whole batches; the rows that do not fill a last
    one are left out, others each epoch. Processes hold contiguous slices of one global batch, which
    is the same for any number of them. Any step can be read at any time.

    Args:
        rows: anything with a length and integer indices; only the rows of this process are read.
        batch: number of rows of the global batch.
        epochs: passes over the rows; a fraction ends inside an epoch, after a whole step.
    Raises: UserError if no batch can be formed, naming everything that is wrong.
    """

    def __init__(
        self,
        rows: Sequence[Triplet],
        *,
        batch: int,
        epochs: float,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        _check_batches(len(rows), batch, epochs, process_index, process_count)
        self.steps_per_epoch, self.left_out = divmod(len(rows), batch)
        # Rounded first, so that epochs = steps / steps_per_epoch gives back exactly these steps.
        self._steps = max(1, math.ceil(round(epochs * self.steps_per_epoch, 6)))
        self.rows, self._batch, self._seed = rows, batch, seed
        share = batch // process_count
        self._slice = slice(process_index * share, (process_index + 1) * share)

    def __len__(self) -> int:
        """Return the number of steps of all epochs."""
        return self._steps

    def __getitem__(self, step: int) -> list[Triplet]:
        """Return this process's rows of the step's global batch; steps count from 0."""
        return [self.rows[row] for row in self.numbers(step)]

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of this process's rows of the step's global batch."""
        return self._numbers(step)[self._slice]

    def whole(self, step: int) -> list[Triplet]:
        """Return all rows of the step's global batch."""
        return [self.rows[row] for row in self._numbers(step)]

    def origin(self, step: int) -> tuple[str, list[int]]:
        """Return where the step's global batch comes from: `line` of a file, from 1, or `row`, from
        0, and the numbers.
        """
        lines = getattr(self.rows, "lines", None)
        numbers = self._numbers(step)
        return ("row", numbers) if lines is None else ("line", [lines[row] for row in numbers])

    def _numbers(self, step: int) -> list[int]:
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} is outside the run's {self._steps} steps.")
        return [int(row) for row in self._order[step]]

    @functools.cached_property
    def _order(self) -> Any:
        import grain  # imports slowly

        # Row numbers are shuffled, not rows, so that a process reads no row of another.
        numbers = grain.MapDataset.range(len(self.rows)).seed(self._seed).shuffle()
        return numbers.batch(self._batch, drop_remainder=True).repeat()


def _check_batches(
    rows: int, batch: int, epochs: float, process_index: int, process_count: int
) -> None:
    problems = []
    if batch < 1:
        problems.append(f"a batch of {batch}; it needs at least 1 row")
    elif batch > rows:
        problems.append(
            f"a batch of {batch}, but only {rows} rows; use at most {rows}, or more rows"
        )
    if not (epochs > 0 and math.isfinite(epochs)):
        problems.append(f"{epochs} epochs; any finite number above 0 is allowed")
    if not 0 <= process_index < process_count:
        problems.append(f"process {process_index} of {process_count}; they count from 0")
    elif batch >= 1 and batch % process_count:
        problems.append(f"a batch of {batch}, which {process_count} processes cannot share evenly")
    if problems:
        raise UserError("No batches can be formed: " + "; ".join(problems) + ".")
