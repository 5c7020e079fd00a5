"""Texts of a file larger than memory: .txt, .jsonl, .csv, .parquet, or standard input.

A corpus is read twice: once before the model is loaded, to count its texts, to name every row that
cannot be read and to know its content again after a kill, and once to encode it.
"""

from __future__ import annotations

import codecs
import csv
import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from prompteol_jax.errors import IsAFolder, NotFound, UserError
from prompteol_jax.storage import paths

COLUMN: Final = "text"
STDIN: Final = Path("-")
_LISTED: Final = 5  # malformed rows that an error shows
_LONGEST_CELL: Final = 1 << 24  # characters of a csv cell; an unclosed quote ends there
_BUFFER: Final = 1 << 20  # bytes of a parquet column read at once


class Malformed(NamedTuple):
    """A row that holds no text."""

    place: str
    what: str


class Chunk(NamedTuple):
    """Consecutive texts of a corpus, by their number and content."""

    rows: int
    sha256: str


Decode = Callable[[bytes], str]
Reader = Callable[[BinaryIO, str, Decode], Iterator[str | Malformed]]


class Corpus:
    """The texts of a file in their order, read anew by each call of `chunks`.

    Attributes:
        invalid: texts of the latest reading with invalid UTF-8, each wrong part now U+FFFD.
    """

    def __init__(self, name: str, source: Callable[[], AbstractContextManager], read: Reader):
        self.name = name
        self.invalid = 0
        self._source = source
        self._read = read

    def chunks(self, rows: int) -> Iterator[list[str]]:
        """Yield lists of this many texts, the last one shorter.

        Raises: UserError, after the last text, that names every row that cannot be read.
        """
        self.invalid = 0
        malformed: list[Malformed] = []
        count = 0
        chunk: list[str] = []
        with self._source() as file:
            _skip_mark(file, self.name)
            for row in self._read(file, self.name, self._decoded):
                if isinstance(row, Malformed):
                    count += 1
                    malformed += [row] if count <= _LISTED else []
                    continue
                chunk.append(row)
                if len(chunk) == rows:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk
        if malformed:
            raise UserError(_report(self.name, malformed, count))

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.invalid += 1
            return raw.decode(errors="replace")


@contextmanager
def opened(path: Path, spool: Path | None = None) -> Iterator[Corpus]:
    """Open a file, or standard input for `-`, one text a line; see `open_corpus` for errors.

    Args:
        spool: folder that keeps standard input meanwhile, the system's by default.
    """
    if path != STDIN:
        yield open_corpus(path)
        return
    with tempfile.TemporaryFile(dir=spool) as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        yield Corpus("standard input", functools.partial(_rewound, kept), _lines)


def open_corpus(path: Path) -> Corpus:
    """Find the reader of a file by its suffix.

    Raises: NotFound, IsAFolder or UserError that says what is read.
    """
    known = ", ".join(READERS)
    path = paths.local_copy(path)
    if path.is_dir():
        raise IsAFolder(f"input {path} is a folder; give one file: {known}")
    if not path.exists():
        raise NotFound(f"no input file {path}; give a file ({known}), or - for a pipe")
    if not path.is_file():
        raise UserError(f"input {path} cannot be read twice; pipe its lines to --input -")
    if path.suffix.lower() not in READERS:
        raise UserError(
            f"input {path} has the unknown suffix {path.suffix!r}; known: {known}. "
            "For lines of text under another name, pipe them to --input -"
        )
    return Corpus(str(path), functools.partial(path.open, "rb"), READERS[path.suffix.lower()])


def survey(corpus: Corpus, rows: int) -> list[Chunk]:
    """Read a corpus once, in chunks of this many texts.

    Raises: UserError that names every row that cannot be read.
    """
    return [Chunk(len(texts), digest(texts)) for texts in corpus.chunks(rows)]


def digest(texts: Sequence[str]) -> str:
    """SHA-256 of texts in their order."""
    content = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")  # a JSON escape can spell half a pair
        content.update(b"%d:" % len(raw))
        content.update(raw)
    return content.hexdigest()


def _lines(file: BinaryIO, name: str, decode: Decode) -> Iterator[str | Malformed]:
    del name
    for line in file:  # a binary file ends its lines at \n only
        yield decode(line.removesuffix(b"\n").removesuffix(b"\r"))


def _json_lines(file: BinaryIO, name: str, decode: Decode) -> Iterator[str | Malformed]:
    for number, line in enumerate(_lines(file, name, decode), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Malformed(f"line {number}", f"no JSON ({error})")
            continue
        if not isinstance(row, dict):
            yield Malformed(f"line {number}", f"a JSON {type(row).__name__}, no object")
        elif COLUMN not in row:
            columns = ", ".join(map(str, row)) or "none"
            yield Malformed(f"line {number}", f"no {COLUMN!r}; its columns: {columns:.200}")
        elif not isinstance(row[COLUMN], str):
            kind = type(row[COLUMN]).__name__
            yield Malformed(f"line {number}", f"{COLUMN!r} is {kind}, no string")
        else:
            yield row[COLUMN]


def _csv_cells(file: BinaryIO, name: str, decode: Decode) -> Iterator[str | Malformed]:
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in file), strict=True)
    with _long_cells():
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"{name}: its header cannot be read: {error}") from error
        at = _column(header, name)
        while True:
            place = f"line {reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Malformed(place, str(error))
                continue
            if len(cells) == len(header):
                yield decode(cells[at].encode("utf-8", "surrogateescape"))
            elif cells:
                yield Malformed(place, f"{len(cells)} cells, the header names {len(header)}")


def _parquet_column(file: BinaryIO, name: str, decode: Decode) -> Iterator[str | Malformed]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file, buffer_size=_BUFFER)
        schema = table.schema_arrow
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is no parquet file: {reason:.200}") from error
    kind = schema.field(_column(schema.names, name)).type
    strings = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(strings) or pa.types.is_large_string(strings)):
        raise UserError(f"{name}: column {COLUMN!r} holds {kind}, not strings")
    row = 0
    try:
        for batch in table.iter_batches(4096, columns=[COLUMN]):
            for raw in batch.column(0).cast(strings).cast(pa.large_binary()).to_pylist():
                row += 1
                yield Malformed(f"row {row}", "null") if raw is None else decode(raw)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is damaged behind row {row}: {reason:.200}") from error


READERS: Final[dict[str, Reader]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".csv": _csv_cells,
    ".parquet": _parquet_column,
}


def _column(names: Sequence[str], source: str) -> int:
    if list(names).count(COLUMN) != 1:
        problem = "several columns" if COLUMN in names else "no column"
        columns = ", ".join(names) or "none"
        raise UserError(f"{source} has {problem} {COLUMN!r}; its columns: {columns:.200}")
    return list(names).index(COLUMN)


@contextmanager
def _rewound(file: BinaryIO) -> Iterator[BinaryIO]:
    file.seek(0)
    yield file


@contextmanager
def _long_cells() -> Iterator[None]:
    previous = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(previous)


def _skip_mark(file: BinaryIO, name: str) -> None:
    """Pass over a byte order mark, which is no part of the first text."""
    start = file.read(len(codecs.BOM_UTF8))
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    if start != codecs.BOM_UTF8:
        file.seek(0)


def _report(name: str, malformed: Sequence[Malformed], count: int) -> str:
    shown = "; ".join(f"{row.place}: {row.what}" for row in malformed)
    more = f"; and {count - len(malformed)} more" if count > len(malformed) else ""
    rows = "row" if count == 1 else "rows"
    return f"{name}: {count} {rows} cannot be read: {shown}{more}"
