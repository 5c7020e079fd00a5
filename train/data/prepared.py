"""Triplets in a prepared dataset: written once by `train.prepare`, read by index in every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prompteol_jax.storage import array_record
from train.data.triplets import COLUMNS, Triplet

NAME: Final = "triplets"


class TripletBuilder(array_record.TextBuilder):
    """The TFDS builder of triplets or pairs."""

    name = NAME
    DESCRIPTION = "An anchor, its positive and, in all rows or none, its hard negative."


class PreparedTriplets(Sequence[Triplet]):
    """The triplets of a prepared dataset; a row is read when it is asked for."""

    def __init__(self, rows: array_record.RecordRows):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Triplet:
        row = self._rows[index]
        return Triplet(row["sent0"], row["sent1"], row.get("hard_neg"))


def write_triplets(triplets: Sequence[Triplet], folder: Path) -> Path:
    """Write triplets in their order and return the dataset's folder.

    Raises: AlreadyExists where the folder holds prepared triplets already.
    """
    columns = COLUMNS[:2] if triplets[0].hard_neg is None else COLUMNS
    rows = [{name: getattr(triplet, name) for name in columns} for triplet in triplets]
    return TripletBuilder(folder, columns, {"train": rows}, {}).write()


def read_prepared(folder: Path) -> PreparedTriplets:
    """Open the prepared triplets of a folder.

    Raises: NotFound, UserError where the folder holds none.
    """
    dataset = array_record.Dataset(folder, NAME, COLUMNS[:2])
    return PreparedTriplets(dataset.rows("train"))
