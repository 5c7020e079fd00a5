"""Triplets in a prepared dataset: written once by `train.prepare`, read by index in every run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prompteol_jax.storage import array_record
from train.data.columns import SCORE
from train.data.triplets import COLUMNS, columns_of, row_class, sorted_columns

NAME: Final = "triplets"


class TripletBuilder(array_record.TextBuilder):
    """The TFDS builder of triplets or pairs."""

    name = NAME
    DESCRIPTION = "Texts of a row, such as anchor, positive and hard negative; its score as JSON."


class PreparedTriplets(Sequence[Any]):
    """The triplets of a prepared dataset; a row is read when it is asked for."""

    def __init__(self, rows: array_record.RecordRows, columns: Sequence[str]):
        self._rows, self._columns = rows, sorted_columns(columns)
        self._class = row_class(self._columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row: dict[str, Any] = dict(self._rows[index])
        if SCORE in row:
            score = json.loads(row[SCORE])
            row[SCORE] = tuple(score) if isinstance(score, list) else score
        return self._class(*(row[name] for name in self._columns))


def write_triplets(triplets: Sequence[Any], folder: Path) -> Path:
    """Write triplets in their order and return the dataset's folder.

    Raises: AlreadyExists where the folder holds prepared triplets already.
    """
    columns = columns_of(triplets[0])
    rows = [{name: _stored(name, getattr(row, name)) for name in columns} for row in triplets]
    return TripletBuilder(folder, columns, {"train": rows}, {}).write()


def read_prepared(folder: Path) -> PreparedTriplets:
    """Open the prepared triplets of a folder.

    Raises: NotFound, UserError where the folder holds none.
    """
    dataset = array_record.Dataset(folder, NAME, COLUMNS[:1])
    return PreparedTriplets(dataset.rows("train"), dataset.columns)


def _stored(name: str, cell: Any) -> str:
    return json.dumps(cell) if name == SCORE else cell
