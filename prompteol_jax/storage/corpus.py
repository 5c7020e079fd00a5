"""Texts of a file larger than memory: .txt, .jsonl, .csv, .parquet, or standard input.

A corpus is read twice: once before the model is loaded, to count its texts, to name every row that
cannot be read and to know its content again after a kill, and once to encode it.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from prompteol_jax.errors import IsAFolder, NotFound, UserError, listed, listed_problems
from prompteol_jax.storage import paths, tables

COLUMN: Final = "text"
STDIN: Final = Path("-")
_LISTED: Final = 5  # malformed rows that an error shows
_BUFFER: Final = 1 << 20  # bytes of a parquet column read together


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
    """The texts of a file in their order, read again by each call of `chunks`.

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
    tables.skip_mark(file, name)
    for line in file:  # a binary file ends its lines at \n only
        yield decode(line.removesuffix(b"\n").removesuffix(b"\r"))


def _json_lines(file: BinaryIO, name: str, decode: Decode) -> Iterator[str | Malformed]:
    for line, row in tables.json_rows(file, name, decode):
        if isinstance(row, tables.Bad):
            yield Malformed(f"line {line}", row.what)
        elif COLUMN not in row:
            yield Malformed(f"line {line}", f"no {COLUMN!r}; its columns: {listed(row):.200}")
        elif not isinstance(row[COLUMN], str):
            kind = type(row[COLUMN]).__name__
            yield Malformed(f"line {line}", f"{COLUMN!r} is {kind}, no string")
        else:
            yield row[COLUMN]


def _csv_cells(file: BinaryIO, name: str, decode: Decode) -> Iterator[str | Malformed]:
    def header(columns: Sequence[str]) -> Sequence[str]:
        _column(columns, name)
        return columns

    for line, row in tables.csv_rows(file, name, header):
        if isinstance(row, tables.Bad):
            yield Malformed(f"line {line}", row.what)
        else:
            yield decode(row[COLUMN].encode("utf-8", "surrogateescape"))


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
    of_strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_of(strings) for is_of in of_strings):
        raise UserError(f"{name}: column {COLUMN!r} holds {kind}, not strings")
    row = 0
    try:
        for batch in table.iter_batches(4096, columns=[COLUMN]):
            for raw in batch.column(0).cast(strings).cast(pa.large_binary()).to_pylist():
                row += 1
                yield Malformed(f"row {row}", "null") if raw is None else decode(raw)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is damaged after row {row}: {reason:.200}") from error


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


def _report(name: str, malformed: Sequence[Malformed], count: int) -> str:
    rows = "row" if count == 1 else "rows"
    shown = listed_problems((f"{row.place}: {row.what}" for row in malformed), total=count)
    return f"{name}: {count} {rows} cannot be read: {shown}"
