"""Texts of a corpus larger than memory: .txt, .jsonl, .csv, .parquet, a folder of them, or `-`.

A corpus is read twice: once before the model is loaded, to count its texts, to name every row that
cannot be read and to know its content again after a kill, and once to encode it. The first reading
notes where each chunk begins, so that the second one reads no other chunk.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from prompteol_jax.errors import NotFound, UserError, listed, listed_problems
from prompteol_jax.storage import paths, tables

COLUMN: Final = "text"
STDIN: Final = Path("-")
_LISTED: Final = 5  # malformed rows that an error shows
_BUFFER: Final = 1 << 20  # bytes of a parquet column read together
_HIDDEN: Final = (".", "_")  # names that begin so are no data, as in other engines


class Malformed(NamedTuple):
    """A row that holds no text."""

    place: str
    what: str


class Chunk(NamedTuple):
    """Consecutive texts of one file of a corpus.

    Attributes:
        rows, sha256: their number and content.
        file: name of the file in a folder; empty for a corpus of one file.
        start: where they begin in it: a byte, or the number of a row of parquet.
    """

    rows: int
    sha256: str
    file: str = ""
    start: int = 0

    @property
    def content(self) -> tuple[int, str]:
        """What the vectors depend on."""
        return self.rows, self.sha256


class OpenFile:
    """A file that is being read; readers keep `at` true.

    Attributes:
        file: the file, in binary mode.
        start: where reading begins, 0 for the beginning of the file.
        at: where the next row begins, as in `Chunk.start`.
    """

    def __init__(self, file: Any, start: int = 0):
        self.file, self.start, self.at = file, start, start

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __iter__(self) -> Iterator[bytes]:
        """Yield lines, which end at \\n only."""
        if self.start:
            self.file.seek(self.start)
        self.at = self.file.tell()
        for line in self.file:
            self.at += len(line)
            yield line


Decode = Callable[[bytes], str]
Reader = Callable[[OpenFile, str, Decode], Iterator[str | Malformed]]


class TextFile(NamedTuple):
    """One file of a corpus.

    Attributes:
        name: name for errors.
        source: function that opens it.
    """

    name: str
    source: Callable[[], AbstractContextManager]
    read: Reader


class Corpus:
    """The texts of one or several files in their order.

    Attributes:
        invalid: texts of the latest reading with invalid UTF-8, each wrong part now U+FFFD.
    """

    def __init__(self, name: str, files: Mapping[str, TextFile]):
        self.name = name
        self.invalid = 0
        self._files = files

    def chunks(self, rows: int) -> Iterator[list[str]]:
        """Yield lists of this many texts of one file, the last one of a file shorter.

        Raises: UserError, after the last text, that names every row that cannot be read.
        """
        return (texts for _, _, texts in self._pieces(rows))

    def survey(self, rows: int) -> list[Chunk]:
        """Read everything once, in chunks of this many texts.

        Raises: UserError as `chunks`.
        """
        return [
            Chunk(len(texts), digest(texts), file, start)
            for file, start, texts in self._pieces(rows)
        ]

    def read(self, chunk: Chunk) -> list[str]:
        """Read the texts of one chunk, and nothing else of its file.

        Raises: UserError where they are no longer what they were.
        """
        changed = UserError(f"{self.name} has changed while it was encoded; start again")
        if chunk.file not in self._files:
            raise changed
        texts: list[str] = []
        rows = self._rows(self._files[chunk.file], chunk.start)
        with closing(rows):
            for _, row in itertools.islice(rows, chunk.rows):
                if isinstance(row, Malformed):
                    break
                texts.append(row)
        if (len(texts), digest(texts)) != chunk.content:
            raise changed
        return texts

    def _pieces(self, rows: int) -> Iterator[tuple[str, int, list[str]]]:
        """Yield chunks with the key of their file and where they begin."""
        self.invalid = 0
        malformed: list[Malformed] = []
        count = 0
        for key, file in self._files.items():
            texts: list[str] = []
            start = 0
            for at, row in self._rows(file):
                if isinstance(row, Malformed):
                    count += 1
                    place = f"{key} {row.place}".strip()
                    malformed += [Malformed(place, row.what)] if count <= _LISTED else []
                    continue
                texts.append(row)
                if len(texts) == rows:
                    yield key, start, texts
                    texts, start = [], at
            if texts:
                yield key, start, texts
        if malformed:
            raise UserError(_report(self.name, malformed, count))

    def _rows(
        self, file: TextFile, start: int = 0
    ) -> Generator[tuple[int, str | Malformed], None, None]:
        """Yield the rows of a file, each with where the next one begins."""
        with file.source() as opened_file:
            reading = OpenFile(opened_file, start)
            for row in file.read(reading, file.name, self._decoded):
                yield reading.at, row

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.invalid += 1
            return raw.decode(errors="replace")


@contextmanager
def opened(path: Path, spool: Path | None = None) -> Iterator[Corpus]:
    """Open a file or folder, or standard input for `-`, one text a line; see `open_corpus`.

    Args:
        spool: folder that keeps standard input meanwhile, the system's by default.
    """
    if path != STDIN:
        yield open_corpus(path)
        return
    with tempfile.TemporaryFile(dir=spool) as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        name = "standard input"
        yield Corpus(name, {"": TextFile(name, functools.partial(_rewound, kept), _lines)})


def open_corpus(path: Path) -> Corpus:
    """Find the readers of a file, or of the files in a folder, by their suffixes.

    Raises: NotFound or UserError that says what is read.
    """
    known = ", ".join(READERS)
    given = paths.as_path(path)
    if given.is_dir():
        return _open_folder(given)
    path = paths.local_copy(path)
    if not path.exists():
        raise NotFound(f"no input file {path}; give a file ({known}), a folder, or - for a pipe")
    if not path.is_file():
        raise UserError(f"input {path} cannot be read twice; pipe its lines to --input -")
    if path.suffix.lower() not in READERS:
        raise UserError(
            f"input {path} has the unknown suffix {path.suffix!r}; known: {known}. "
            "For lines of text under another name, pipe them to --input -"
        )
    return Corpus(str(path), {"": _text_file(path)})


def _open_folder(folder: paths.AnyPath) -> Corpus:
    """Find the files of a folder, in the order of their names.

    Raises: NotFound where it holds none; UserError that names what else it holds.
    """
    names = [name for name in paths.files(folder) if not name.startswith(_HIDDEN)]
    others = [name for name in names if "/" in name or _suffix(name) not in READERS]
    known = ", ".join(READERS)
    if others:
        raise UserError(
            f"input folder {folder} holds what is no text ({listed(others, 5)}); only files with "
            f"{known} may be in it, and names that begin with . or _, which are passed over"
        )
    if not names:
        raise NotFound(f"input folder {folder} holds no file with {known}")
    return Corpus(str(folder), {name: _text_file(folder / name) for name in names})


def _text_file(path: paths.AnyPath) -> TextFile:
    """Return a file, here or in a bucket, from which it is copied when it is first opened."""
    return TextFile(
        str(path), lambda: paths.local_copy(path).open("rb"), READERS[_suffix(path.name)]
    )


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def digest(texts: Sequence[str]) -> str:
    """SHA-256 of texts in their order."""
    content = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")  # a JSON escape can spell half a pair
        content.update(b"%d:" % len(raw))
        content.update(raw)
    return content.hexdigest()


def _lines(file: OpenFile, name: str, decode: Decode) -> Iterator[str | Malformed]:
    tables.skip_mark(file.file, name)
    for line in file:
        yield decode(line.removesuffix(b"\n").removesuffix(b"\r"))


def _json_lines(file: OpenFile, name: str, decode: Decode) -> Iterator[str | Malformed]:
    for line, row in tables.json_rows(cast(BinaryIO, file), name, decode):
        if isinstance(row, tables.Bad):
            yield Malformed(f"line {line}", row.what)
        elif COLUMN not in row:
            yield Malformed(f"line {line}", f"no {COLUMN!r}; its columns: {listed(row):.200}")
        elif not isinstance(row[COLUMN], str):
            kind = type(row[COLUMN]).__name__
            yield Malformed(f"line {line}", f"{COLUMN!r} is {kind}, no string")
        else:
            yield row[COLUMN]


def _csv_cells(file: OpenFile, name: str, decode: Decode) -> Iterator[str | Malformed]:
    def header(columns: Sequence[str]) -> Sequence[str]:
        _column(columns, name)
        return columns

    lines = tables.Lines(file.file)
    rows = tables.csv_rows(file.file, name, header, lines)
    if file.start:  # behind the header, which the first row is read for
        next(rows, None)
        lines.seek(file.start)
    for line, row in rows:
        file.at = lines.at
        if isinstance(row, tables.Bad):
            yield Malformed(f"line {line}", row.what)
        else:
            yield decode(row[COLUMN].encode("utf-8", "surrogateescape"))


def _parquet_column(file: OpenFile, name: str, decode: Decode) -> Iterator[str | Malformed]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file.file, buffer_size=_BUFFER)
        schema = table.schema_arrow
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is no parquet file: {reason:.200}") from error
    kind = schema.field(_column(schema.names, name)).type
    strings = kind.value_type if pa.types.is_dictionary(kind) else kind
    of_strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_of(strings) for is_of in of_strings):
        raise UserError(f"{name}: column {COLUMN!r} holds {kind}, not strings")
    groups, file.at = _groups_from(table.metadata, file.start)
    try:
        for batch in table.iter_batches(4096, row_groups=groups, columns=[COLUMN]):
            for raw in batch.column(0).cast(strings).cast(pa.large_binary()).to_pylist():
                file.at += 1
                if file.at <= file.start:
                    continue
                yield Malformed(f"row {file.at}", "null") if raw is None else decode(raw)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is damaged after row {file.at}: {reason:.200}") from error


def _groups_from(metadata: Any, row: int) -> tuple[list[int], int]:
    """Return the row groups of a parquet file from that of a row on, and where these begin."""
    begin, first = 0, 0
    while first < metadata.num_row_groups:
        size = metadata.row_group(first).num_rows
        if begin + size > row:
            break
        begin, first = begin + size, first + 1
    return list(range(first, metadata.num_row_groups)), begin


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
