"""Vectors of a teacher for the rows: `--teacher vectors.npy`, one entry a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths
from train.data.triplets import columns_of, row_class


class Taught(Sequence[Any]):
    """Rows with the column `teacher`: the vectors of the row's number in a file.

    The file is mapped, so that only the vectors of the rows that are read are in memory.
    """

    def __init__(self, rows: Sequence[Any], vectors: np.ndarray):
        self._rows, self._vectors = rows, vectors
        self._columns = columns_of(rows[0])
        self._class = row_class((*self._columns, "teacher"))
        self.lines = getattr(rows, "lines", None)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        row = self._rows[number]
        cells = (getattr(row, name) for name in self._columns)
        return self._class(*cells, np.asarray(self._vectors[number], np.float32))


def with_teacher(rows: Sequence[Any], file: Path) -> Taught:
    """Return the rows with the vectors of a .npy file, [rows, D] or [rows, columns, D].

    Raises: UserError for a file that is none, that holds objects, or as many vectors as there are
        not rows, or numbers that are not finite.
    """
    path = paths.local_copy(file)
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--teacher {file} cannot be read as a .npy file: {error}") from error
    problem = ""
    if vectors.ndim not in (2, 3) or not np.issubdtype(vectors.dtype, np.floating):
        problem = f"holds {vectors.dtype} of shape {vectors.shape}; vectors are floats [rows, D]"
    elif len(vectors) != len(rows):
        problem = f"has {len(vectors)} entries for {len(rows)} rows; give one for each row"
    elif not all(np.isfinite(part).all() for part in _parts(vectors)):
        problem = "holds numbers that are not finite"
    if problem:
        raise UserError(f"--teacher {file} {problem}")
    return Taught(rows, vectors)


def _parts(vectors: np.ndarray, size: int = 65536) -> list[np.ndarray]:
    return [vectors[start : start + size] for start in range(0, len(vectors), size)]
