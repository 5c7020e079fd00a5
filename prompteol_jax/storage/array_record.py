"""Datasets of texts as ArrayRecord files, through TensorFlow Datasets but without TensorFlow.

A dataset is a folder of one version, `FOLDER/NAME/1.0.0`, with the texts of each split in the order
in which they were given. Reading is by index, so a process reads the rows that it wants and no
others; the files are those that `tfds.builder_from_directory` opens anywhere.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import tensorflow_datasets as tfds

from prompteol_jax.errors import AlreadyExists, NotFound, UserError

INFO: Final = "dataset_info.json"
VERSION: Final = "1.0.0"


class _LocalInfo(tfds.core.DatasetInfo):
    """Facts of a dataset that no bucket of TFDS knows."""

    def initialize_from_bucket(self) -> None:
        """Ask no network, and leave no temporary folder behind."""


class TextBuilder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder of rows of texts, kept in their order; subclasses name the dataset.

    Args:
        columns: names of the texts of a row.
        splits: rows by split, each with those columns.
        facts: what JSON can hold, kept with the rows.
    """

    VERSION: ClassVar = tfds.core.Version(VERSION)
    DESCRIPTION: ClassVar[str]

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        splits: Mapping[str, Sequence[Mapping[str, str]]],
        facts: Mapping[str, Any],
    ):
        self._columns, self._splits, self._facts = columns, splits, facts
        super().__init__(data_dir=str(folder), file_format="array_record")

    def write(self) -> Path:
        """Write all splits and return the dataset's folder, which appears when it is complete.

        Raises: AlreadyExists where the folder holds this dataset already.
        """
        place = Path(self.data_dir)
        if place.exists():
            raise AlreadyExists(f"{place} exists; remove it, or choose another folder")
        with contextlib.redirect_stdout(sys.stderr):
            self.download_and_prepare()
        return place

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in self._columns}
        return _LocalInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(texts),
            metadata=tfds.core.MetadataDict(self._facts),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(rows) for name, rows in self._splits.items()}

    def _generate_examples(
        self, rows: Sequence[Mapping[str, str]]
    ) -> Iterator[tuple[int, Mapping[str, str]]]:
        yield from enumerate(rows)


class Dataset:
    """A dataset that was written before.

    Raises: NotFound where the folder holds none, or several; UserError where it lacks
        columns that are wanted.
    """

    def __init__(self, folder: Path, name: str, columns: Sequence[str]):
        self.folder = _find(folder, name)
        # The decorators of tfds hide the types of its methods.
        self._builder = cast(Any, tfds.builder_from_directory(str(self.folder)))
        self.columns = tuple(self._builder.info.features)
        lacking = [column for column in columns if column not in self.columns]
        if lacking:
            raise UserError(
                f"{self.folder} has the columns {', '.join(self.columns)} and lacks "
                f"{', '.join(lacking)}; it is no dataset of {name}"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._builder.info.splits)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was kept with the rows."""
        return dict(self._builder.info.metadata or {})

    def rows(self, split: str) -> RecordRows:
        """The rows of a split, read when they are asked for."""
        return RecordRows(self._builder.as_data_source(split), f"{self.folder} ({split})")


class RecordRows(Sequence[dict[str, str]]):
    """RecordRows of texts in the order in which they were written."""

    def __init__(self, source: Any, name: str):
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, str]:
        """Read one row.

        Raises: UserError where its record cannot be read.
        """
        place = range(len(self))[index]
        try:
            row = self._source[place]
        except Exception as error:  # array_record raises RuntimeError, protobuf its own errors
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self._name}: row {place} is damaged: {reason}") from error
        return {name: raw.decode() for name, raw in row.items()}


def is_dataset(folder: Path) -> bool:
    """Say whether a folder is a dataset, or holds one."""
    return any(True for _ in _versions(folder))


def _versions(folder: Path) -> Iterator[Path]:
    for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}"):
        yield from (path.parent for path in sorted(folder.glob(pattern)))


def _find(folder: Path, name: str) -> Path:
    found = [path for path in _versions(folder) if path.parent.name == name]
    if len(found) != 1:
        what = ", ".join(map(str, found)) or "none"
        raise NotFound(
            f"{folder} should hold one prepared dataset {name}; found: {what}. "
            "`python -m train.prepare` makes them"
        )
    return found[0]
