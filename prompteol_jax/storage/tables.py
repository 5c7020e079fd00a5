"""Rows of csv and jsonl files with their line numbers; what cannot be read is a row too.

A reader yields pairs of a line number, from 1, and either the cells by column or a `Bad` row. The
caller decides what a bad row means. Bytes that are not UTF-8 become lone surrogates
(`surrogateescape`), so that the caller can name their line or repair the text.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from prompteol_jax.errors import UserError

LONGEST_CELL: Final = 1 << 24  # characters; a quote that is never closed ends there
_PIECE: Final = 1 << 16  # bytes read together


class Bad(NamedTuple):
    """A row that cannot be read.

    Attributes:
        what: reason, as a phrase.
        ends_file: True where nothing after this row could be read either.
    """

    what: str
    ends_file: bool = False


if TYPE_CHECKING:
    Binary = BinaryIO | BufferedIOBase
else:
    # At run time the check asks for a mode in words, which gzip has not, and for no wrapped file.
    Binary = Any
Row = tuple[int, dict[str, Any] | Bad]
CheckHeader = Callable[[Sequence[str]], Sequence[str]]


def skip_mark(file: Binary, name: str) -> None:
    """Pass over a byte order mark of UTF-8, which is no part of the first text.

    Raises: UserError where the mark is that of UTF-16 or UTF-32.
    """
    start = file.read(4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        kind = "UTF-32" if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) else "UTF-16"
        raise UserError(f"{name} is {kind}; convert it to UTF-8: iconv -f {kind} -t UTF-8")
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)


def csv_rows(
    file: Binary, name: str, header: CheckHeader = list, lines: Lines | None = None
) -> Iterator[Row]:
    """Yield the rows of a csv file whose first row names the columns.

    Lines end with `\\n`, `\\r\\n` or a bare `\\r`. Blank lines are no rows.

    Args:
        file: file at its start, in binary mode.
        name: name of the file, for errors.
        header: function that checks the names of the columns, and returns them.
        lines: lines of the file, for a caller who needs to know where they are.
    Raises: UserError where the header cannot be read, or `header` refuses it; UTF-16.
    """
    skip_mark(file, name)
    lines = lines or Lines(file)
    reader = csv.reader(lines, strict=True)
    names: Sequence[str] | None = None
    while True:
        line = lines.number + 1
        try:
            cells = _next_cells(reader)
        except StopIteration:
            break
        except csv.Error as error:
            bad = _csv_problem(error)
            if names is None:
                raise UserError(f"{name}: its header, line {line}, has {bad.what}") from error
            yield line, bad
            if bad.ends_file:
                return
            continue
        if not cells:
            continue
        if names is None:
            names = header(cells)
        elif len(cells) != len(names):
            yield line, Bad(f"{len(cells)} cells where the header names {len(names)}")
        else:
            yield line, dict(zip(names, cells, strict=True))
    if names is None:
        header([])


def escaped(raw: bytes) -> str:
    """Decode UTF-8; other bytes become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def json_rows(file: Binary, name: str, decode: Callable[[bytes], str] = escaped) -> Iterator[Row]:
    """Yield the rows of a file of one JSON object a line. Blank lines are no rows.

    Lines end at `\\n` only: a JSON string may hold a bare `\\r` or a Unicode line separator.

    Args:
        decode: function from the bytes of a line to its text.
    Raises: UserError where the file is UTF-16.
    """
    skip_mark(file, name)
    for line, raw in enumerate(file, start=1):
        if raw.strip():
            yield line, _json_row(decode(raw))


def read_rows(path: Path, header: CheckHeader = list) -> Iterator[Row]:
    """Yield the rows of a .csv, .jsonl or .json file; see `csv_rows` and `json_rows`."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".csv":
            yield from csv_rows(file, str(path), header)
        else:
            yield from json_rows(file, str(path))


def is_utf8(text: str) -> bool:
    """Say whether a text came from valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Lines:
    """Lines of a file with their ends kept; each of `\\n`, `\\r\\n` and `\\r` ends one.

    Attributes:
        number: lines given out.
        at: byte of the file at which the next line begins.
    """

    def __init__(self, file: Binary):
        self.number = self.at = 0
        self._file = file
        self._lines = self._split()

    def seek(self, at: int) -> None:
        """Go on at this byte, where a line begins."""
        self._file.seek(at)
        self._lines = self._split()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.at += len(line)
        return escaped(line)

    def _split(self) -> Iterator[bytes]:
        self.at = self._file.tell()
        rest: list[bytes] = []
        while piece := self._file.read(_PIECE):
            if piece.endswith(b"\r"):  # perhaps the first half of \r\n
                piece += self._file.read(1)
            for line in piece.splitlines(keepends=True):  # of bytes: at \n, \r\n and \r only
                rest.append(line)
                if line.endswith((b"\n", b"\r")):
                    yield b"".join(rest)
                    rest = []
        if rest:
            yield b"".join(rest)


def _next_cells(reader: Any) -> list[str]:
    # The limit holds for the whole process, so it is put back.
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _csv_problem(error: csv.Error) -> Bad:
    told = str(error)
    if "end of data" in told:
        return Bad("a quote that is never closed", ends_file=True)
    if "field limit" in told or "field larger" in told:
        what = f"a cell longer than {LONGEST_CELL:,} characters, or a quote that is never closed"
        return Bad(what, ends_file=True)
    return Bad(f"broken quoting ({told})")


def _json_row(text: str) -> dict[str, Any] | Bad:
    try:
        value = json.loads(text)
    except RecursionError:
        return Bad("JSON that is nested too deeply")
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return Bad(f"no JSON ({reason}); one object a line is needed")
    return value if isinstance(value, dict) else Bad(f"a JSON {type(value).__name__}, no object")
