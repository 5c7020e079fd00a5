"""STS sets in a prepared dataset, as `python -m train.prepare sts` writes them.

A set is a split of the dataset, named like the task with `_` for `-`. Gold scores are kept as text,
so that none loses a digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from eval.sts.pairs import Pairs, Task
from prompteol_jax.errors import NotFound
from prompteol_jax.storage import array_record

NAME: Final = "sts"
COLUMNS: Final = ("subset", "text_a", "text_b", "gold")


class StsBuilder(array_record.TextBuilder):
    """The TFDS builder of STS sets."""

    name = NAME
    DESCRIPTION = "Pairs of sentences and their gold similarities; each split is a task."


def write_tasks(tasks: Sequence[Task], folder: Path) -> Path:
    """Write tasks and return the dataset's folder.

    Raises: AlreadyExists where the folder holds prepared STS sets already.
    """
    splits = {
        _split(task.name): [row for pairs in task.subsets for row in _rows(pairs)] for task in tasks
    }
    dropped = {task.name: {pairs.name: pairs.dropped for pairs in task.subsets} for task in tasks}
    return StsBuilder(folder, COLUMNS, splits, {"dropped": dropped}).write()


def read_prepared(folder: Path, names: Sequence[str]) -> tuple[Task, ...]:
    """Read tasks by their full names, such as `STS12` or `STSBenchmark-dev`.

    Raises: NotFound where the folder lacks the dataset or some of the tasks.
    """
    dataset = array_record.Dataset(folder, NAME, COLUMNS)
    missing = [name for name in names if _split(name) not in dataset.splits]
    if missing:
        raise NotFound(
            f"{dataset.folder} lacks {', '.join(missing)}; it holds {', '.join(dataset.splits)}"
        )
    return tuple(_task(dataset, name) for name in names)


def _split(name: str) -> str:
    return name.replace("-", "_")


def _rows(pairs: Pairs) -> list[dict[str, str]]:
    columns = zip(pairs.texts_a, pairs.texts_b, map(float, pairs.gold), strict=True)
    return [
        dict(zip(COLUMNS, (pairs.name, a, b, repr(gold)), strict=True)) for a, b, gold in columns
    ]


def _task(dataset: array_record.Dataset, name: str) -> Task:
    subsets: dict[str, list[dict[str, str]]] = {}
    for row in dataset.rows(_split(name)):
        subsets.setdefault(row["subset"], []).append(row)
    dropped = dataset.facts["dropped"][name]
    return Task(
        name,
        tuple(
            Pairs(
                subset,
                tuple(row["text_a"] for row in rows),
                tuple(row["text_b"] for row in rows),
                np.array([row["gold"] for row in rows], np.float64),
                int(dropped[subset]),
            )
            for subset, rows in subsets.items()
        ),
    )
