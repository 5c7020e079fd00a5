"""The seven transfer tasks, read from SentEval's `downstream` folder as SentEval reads them.

Its oddities are kept, because the order of the rows decides the folds:

- MR, CR, SUBJ and MPQA are read as Latin-1, and a line ends wherever `str.splitlines` ends one;
- their empty lines (CR has four, MPQA three) are sentences too;
- words are separated by white space, the no-break space included;
- each set is sorted by the number of words, then by class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from eval.shared import datasets, senteval

TREC_CLASSES: Final = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
FOLDERS: Final = ("MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC")  # in this order
SHORT: Final = {"SST": "SST2", "SST-2": "SST2"}
OPINIONS: Final = ("negative", "positive")

Row = tuple[tuple[str, ...], int]  # one text, or a pair of them, and their class


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts with their classes: one column of texts, or two where pairs are classified."""

    columns: tuple[Sequence[str], ...]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Transfer:
    """A classification task; which sets it has decides how it is cross-validated.

    Only `train`: nested folds. `train` and `test`: folds of the training set choose the weight
    decay. All three: the development set chooses it.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    development: Examples | None = None
    test: Examples | None = None

    def __len__(self) -> int:
        """Number of examples that are tested."""
        return len(self.test if self.test else self.train)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def sets(self) -> tuple[Examples, ...]:
        """The sets that the task has."""
        return tuple(part for part in (self.train, self.development, self.test) if part)


@dataclass(frozen=True)
class Files:
    """Files of a task's sets: one file per set, or one per class, the highest class first."""

    class_names: tuple[str, ...]
    read: Callable[[Path, list[str]], Iterator[Row]]
    train: tuple[str, ...]
    development: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def read_transfer(
    folder: str | Path, names: Sequence[str] = (), *, folds: int = 10
) -> tuple[Transfer, ...]:
    """Read tasks, all unless named, from SentEval's `downstream` folder or the one that holds it.

    A task with another number of rows than the published one is logged.

    Raises: UserError naming unknown tasks, or all lines that cannot be read and classes with fewer
        rows than folds; NotFound naming the folder, or all missing files.
    """
    senteval.check_names("transfer task", names, tuple(SOURCES), SHORT)
    names = tuple(dict.fromkeys(names)) or tuple(SOURCES)
    root = senteval.downstream(folder, FOLDERS)
    sources = {name: SOURCES[name] for name in names}
    wanted = [s.train + s.development + s.test for s in sources.values()]
    senteval.check(root, [root / file for group in wanted for file in group])
    problems: list[str] = []
    tasks = tuple(
        _read_task(root, name, source, folds, problems) for name, source in sources.items()
    )
    senteval.refuse(root, problems)
    datasets.warn_of_incomplete(_rows(tasks), root)
    return tasks


def describe_data(folder: Path, tasks: Sequence[Transfer]) -> dict[str, Any]:
    """Return the record of the data in a result file; see `datasets.describe`."""
    content = (
        [task.name, [list(column) for column in part.columns], part.labels.tolist()]
        for task in tasks
        for part in task.sets
    )
    return datasets.describe(folder, "test", _rows(tasks), content)


def _rows(tasks: Sequence[Transfer]) -> dict[str, tuple[int, ...]]:
    return {task.name: tuple(map(len, task.sets)) for task in tasks}


def _read_task(root: Path, name: str, source: Files, folds: int, problems: list[str]) -> Transfer:
    def examples(paths: Sequence[str], least: int) -> Examples | None:
        if not paths:
            return None
        found: list[Row] = []
        for number, path in enumerate(paths):
            rows = list(source.read(root / path, problems))
            # A file a class: the first holds the highest one.
            found += [(t, len(paths) - 1 - number) for t, _ in rows] if len(paths) > 1 else rows
        labels = [label for _, label in found]
        _check_classes([root / path for path in paths], labels, source, least, problems)
        return _sorted(found)

    least = 1 if source.development else folds
    train = examples(source.train, least)
    assert train is not None  # every source names files to train on
    development, test = (examples(paths, 0) for paths in (source.development, source.test))
    return Transfer(name, source.class_names, train, development, test)


def _check_classes(
    paths: Sequence[Path], labels: Sequence[int], source: Files, least: int, problems: list[str]
) -> None:
    """Note a set without rows, and classes with too few, under the file that should hold them."""
    if not labels:
        problems.append(f"{paths[0]}: no examples")
        return
    counts = np.bincount(labels, minlength=len(source.class_names))
    for number, name in enumerate(source.class_names):
        path = paths[-1 - number] if len(paths) > 1 else paths[0]
        if counts[number] < least:
            problems.append(
                f"{path}: {counts[number]} examples of class {name}, needs {least} or more"
            )


def _sorted(rows: Sequence[Row]) -> Examples:
    """Sort as SentEval does, by words of each text, then by class; equal ones keep their order."""
    rows = sorted(rows, key=lambda row: (*(len(text.split()) for text in row[0]), row[1]))
    columns = tuple(zip(*(texts for texts, _ in rows), strict=True)) or ((),)
    return Examples(columns, np.array([label for _, label in rows], np.int64))


def _sentences(path: Path, problems: list[str]) -> Iterator[Row]:
    """Read a file of one class, a sentence per line."""
    for line in senteval.content(path, problems).decode("latin-1").splitlines():
        yield (_joined(line),), 0


def _sst(path: Path, problems: list[str]) -> Iterator[Row]:
    for number, line in senteval.lines(path, problems):
        fields = line.strip().split("\t")
        if len(fields) != 2 or fields[1] not in ("0", "1"):
            problems.append(f"{path}:{number}: {line[:80]!r}, expected a sentence, a tab, 0 or 1")
            continue
        yield (_joined(fields[0]),), int(fields[1])


def _trec(path: Path, problems: list[str]) -> Iterator[Row]:
    text = (
        senteval.content(path, problems).decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    )
    text = text.removesuffix("\n")
    for number, line in enumerate(text.split("\n") if text else (), start=1):
        name, _, rest = line.strip().partition(":")
        question = _joined(rest.partition(" ")[2])
        if name not in TREC_CLASSES or not question:
            problems.append(
                f"{path}:{number}: {line[:80]!r}, expected CLASS:detail and a question, the class "
                f"one of {', '.join(TREC_CLASSES)}"
            )
            continue
        yield (question,), TREC_CLASSES.index(name)


def _mrpc(path: Path, problems: list[str]) -> Iterator[Row]:
    for number, line in senteval.lines(path, problems):
        fields = line.strip().split("\t")
        is_pair = len(fields) >= 5 and fields[0] in ("0", "1")
        if number == 1:
            if is_pair:
                problems.append(f"{path}:1: {line[:80]!r}, expected the names of the columns")
            continue
        if not is_pair:
            problems.append(
                f"{path}:{number}: {line[:80]!r}, expected 0 or 1, two numbers and two sentences "
                "between tabs"
            )
            continue
        yield (_joined(fields[3]), _joined(fields[4])), int(fields[0])


def _joined(text: str) -> str:
    return " ".join(text.split())


SOURCES: Final = {
    "MR": Files(OPINIONS, _sentences, ("MR/rt-polarity.pos", "MR/rt-polarity.neg")),
    "CR": Files(OPINIONS, _sentences, ("CR/custrev.pos", "CR/custrev.neg")),
    "SUBJ": Files(
        ("subjective", "objective"), _sentences, ("SUBJ/subj.objective", "SUBJ/subj.subjective")
    ),
    "MPQA": Files(OPINIONS, _sentences, ("MPQA/mpqa.pos", "MPQA/mpqa.neg")),
    "SST2": Files(
        OPINIONS,
        _sst,
        ("SST/binary/sentiment-train",),
        ("SST/binary/sentiment-dev",),
        ("SST/binary/sentiment-test",),
    ),
    "TREC": Files(TREC_CLASSES, _trec, ("TREC/train_5500.label",), test=("TREC/TREC_10.label",)),
    "MRPC": Files(
        ("different", "paraphrase"),
        _mrpc,
        ("MRPC/msr_paraphrase_train.txt",),
        test=("MRPC/msr_paraphrase_test.txt",),
    ),
}
