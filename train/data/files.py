"""Rows of any kind of file that people keep training data in.

.csv, .jsonl, .json     rows with named cells; also with .gz at the end
.txt                    a sentence a line, the column sent0; also with .gz at the end
.parquet                a table
a folder                a data set that `datasets.save_to_disk` wrote (of several splits, train),
                        or parquet files, in the order of their names
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prompteol_jax.errors import NotFound, UserError, listed
from prompteol_jax.storage import tables
from prompteol_jax.storage.json_files import read_object

if TYPE_CHECKING:
    import pyarrow as pa

LINES: Final = (".csv", ".jsonl", ".json", ".txt")
PARQUET: Final = ".parquet"
_STATE: Final = "state.json"  # of a data set on disk
_SPLITS: Final = "dataset_dict.json"  # of several
_BATCH: Final = 4096  # rows of a table that are Python objects at one time


def rows_of(path: Path, header: tables.CheckHeader) -> Iterator[tables.Row]:
    """Yield the rows of a file or folder, each with its line, from 1; of tables its row, from 0.

    Args:
        header: function that checks the columns of a csv file or a table.
    Raises: NotFound, UserError for what cannot be read.
    """
    check_kind(path)
    if not has_lines(path):
        yield from _table_rows(path, header)
        return
    try:
        with _opened(path) as file:
            yield from _line_rows(file, path, header)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file: {error}") from error


def has_lines(path: Path) -> bool:
    """Say whether rows are known by their lines."""
    return not path.is_dir() and _kind(path) in LINES


def has_columns(path: Path) -> bool:
    """Say whether a file names its columns; a .txt file has sent0 alone, without a name."""
    return path.is_dir() or _kind(path) != ".txt"


def is_tables(folder: Path) -> bool:
    """Say whether a folder holds tables: parquet files, or a data set that was saved to disk."""
    marks = (folder / name for name in (_STATE, _SPLITS))
    return bool(_tables_of(folder)) or any(mark.exists() for mark in marks)


def files_of(path: Path) -> list[Path]:
    """Return the files that hold the rows of a file or folder, in their order."""
    if not path.is_dir():
        return [path]
    return _tables_of(path) or _streams(path)


def check_kind(path: Path) -> None:
    """Refuse what is not there, and other kinds of file.

    Raises: NotFound, UserError.
    """
    kinds = ", ".join((*LINES, PARQUET))
    if path.is_dir():
        if not is_tables(path):
            raise UserError(f"{path} is a folder without tables. Give one {kinds} file.")
        return
    if not path.exists():
        raise NotFound(f"No file {path}. Give a {kinds} file of triplets.")
    if _kind(path) not in (*LINES, PARQUET):
        raise UserError(
            f"{path}: unknown kind of file {path.suffix!r}. Triplets are read from {kinds}; rename "
            "or convert the file."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty. It needs rows with sent0, sent1, hard_neg.")


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _opened(path: Path) -> tables.Binary:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _line_rows(file: tables.Binary, path: Path, header: tables.CheckHeader) -> Iterator[tables.Row]:
    kind = _kind(path)
    if kind == ".csv":
        yield from tables.csv_rows(file, str(path), header)
    elif kind == ".txt":
        yield from _text_rows(file, str(path))
    else:
        yield from tables.json_rows(file, str(path))


def _text_rows(file: tables.Binary, name: str) -> Iterator[tables.Row]:
    tables.skip_mark(file, name)
    for line, raw in enumerate(file, start=1):
        if raw.strip():
            yield line, {"sent0": tables.escaped(raw.rstrip(b"\r\n"))}


def _table_rows(path: Path, header: tables.CheckHeader) -> Iterator[tables.Row]:
    """Yield the rows of tables; cells that are not there are null."""
    number = itertools.count()
    for table in _open_tables(path):
        names = header(table.column_names)
        for batch in table.to_batches(max_chunksize=_BATCH):
            for row in batch.rename_columns(names).to_pylist():
                yield next(number), row


def _open_tables(path: Path) -> list[pa.Table]:
    import pyarrow as pa
    from pyarrow import parquet

    def table(file: Path) -> pa.Table:
        if _kind(file) == PARQUET:
            return parquet.read_table(file)
        return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()

    try:
        return [table(file) for file in files_of(path)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error


def _tables_of(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{PARQUET}"))


def _streams(folder: Path) -> list[Path]:
    """Return the arrow files of a data set on disk, in order."""
    if (folder / _SPLITS).exists():
        splits: Any = read_object(folder / _SPLITS).get("splits")
        if not isinstance(splits, list) or "train" not in splits:
            found = listed(splits) if isinstance(splits, list) else "none"
            raise UserError(f"{folder} has the splits {found}: give the folder of one of them")
        folder = folder / "train"
    state = read_object(folder / _STATE)
    if state.get("_indices_files"):
        raise UserError(
            f"{folder} holds a selection of another table's rows: write it with "
            "dataset.flatten_indices().save_to_disk()"
        )
    entries: Any = state.get("_data_files")
    names = [entry.get("filename") for entry in entries] if isinstance(entries, list) else []
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise UserError(f"{folder / _STATE} names no files of its own folder under _data_files")
    return [folder / name for name in names]
