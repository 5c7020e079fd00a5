"""The seven transfer tasks, read from SentEval's `downstream` folder as SentEval reads them.

That includes its oddities, which decide which sentence is row number what of a split: MR, CR, SUBJ
and MPQA are read as Latin-1 and broken wherever `str.splitlines` breaks; their empty lines (CR has
four, MPQA three) are sentences too; words are what white space separates, the no-break space
included; and each set is sorted by the number of words, then by class, before a classifier sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from eval.shared import senteval
from prompteol_jax.errors import UserError

TREC_CLASSES: Final = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
PLACES: Final = ("MR", "CR", "SUBJ", "MPQA", "SST", "TREC", "MRPC")  # folders, in this order

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
    classes: int
    train: Examples
    development: Examples | None = None
    test: Examples | None = None

    def __len__(self) -> int:
        """Examples that are tested."""
        return len(self.test if self.test else self.train)

    @property
    def sets(self) -> tuple[Examples, ...]:
        """The sets that the task has."""
        return tuple(part for part in (self.train, self.development, self.test) if part)


@dataclass(frozen=True)
class Source:
    """Where a task's sets lie; a set is one file, or one a class in descending order of it."""

    classes: int
    read: Callable[[Path, list[str]], Iterator[Row]]
    train: tuple[str, ...]
    development: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def read_transfer(
    folder: str | Path, names: Sequence[str] = (), *, folds: int = 10
) -> tuple[Transfer, ...]:
    """Reads tasks, all unless named, from SentEval's `downstream` folder or the one that holds it.

    Raises:
        UserError: unknown tasks; lines that cannot be read, or classes with fewer rows than folds,
            all in one error.
        NotFound: no such folder, or missing files, all in one error.
    """
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise UserError(
            f"no transfer task {', '.join(map(repr, unknown))}; there are {', '.join(SOURCES)}"
        )
    names = tuple(dict.fromkeys(names)) or tuple(SOURCES)
    root = senteval.downstream(folder, PLACES)
    sources = {name: SOURCES[name] for name in names}
    wanted = [s.train + s.development + s.test for s in sources.values()]
    senteval.check(root, [root / file for group in wanted for file in group])
    problems: list[str] = []
    tasks = tuple(
        _read_task(root, name, source, folds, problems) for name, source in sources.items()
    )
    senteval.refuse(root, problems)
    return tasks


def _read_task(root: Path, name: str, source: Source, folds: int, problems: list[str]) -> Transfer:
    def examples(paths: Sequence[str], least: int) -> Examples | None:
        if not paths:
            return None
        found: list[Row] = []
        for number, path in enumerate(paths):
            rows = list(source.read(root / path, problems))
            # A file a class: the first holds the highest one.
            found += [(t, len(paths) - 1 - number) for t, _ in rows] if len(paths) > 1 else rows
        _check_classes(root / paths[-1], [label for _, label in found], source, least, problems)
        return _sorted(found)

    least = 1 if source.development else folds
    parts = [examples(source.train, least)]
    parts += [examples(paths, 0) for paths in (source.development, source.test)]
    return Transfer(name, source.classes, *parts)


def _check_classes(
    path: Path, labels: Sequence[int], source: Source, least: int, problems: list[str]
) -> None:
    counts = np.bincount(labels, minlength=source.classes) if labels else [0] * source.classes
    if not labels:
        problems.append(f"{path}: no examples")
    elif min(counts) < least:
        problems.append(
            f"{path}: {min(counts)} examples of class {int(np.argmin(counts))}, "
            f"needs {least} or more"
        )


def _sorted(rows: Sequence[Row]) -> Examples:
    """Sorts as SentEval does, by words of each text, then by class; equal ones keep their order."""
    rows = sorted(rows, key=lambda row: (*(len(text.split()) for text in row[0]), row[1]))
    columns = tuple(zip(*(texts for texts, _ in rows), strict=True)) or ((),)
    return Examples(columns, np.array([label for _, label in rows], np.int64))


def _sentences(path: Path, problems: list[str]) -> Iterator[Row]:
    """Reads a file of one class, a sentence a line; an empty file is noticed by its class."""
    for line in path.read_text(encoding="latin-1").splitlines():
        yield (_joined(line),), 0


def _sst(path: Path, problems: list[str]) -> Iterator[Row]:
    for number, line in senteval.lines(path, problems):
        fields = line.strip().split("\t")
        if len(fields) != 2 or fields[1] not in ("0", "1"):
            problems.append(f"{path}:{number}: {line[:80]!r}, expected a sentence, a tab, 0 or 1")
            continue
        yield (_joined(fields[0]),), int(fields[1])


def _trec(path: Path, problems: list[str]) -> Iterator[Row]:
    text = path.read_text(encoding="latin-1").removesuffix("\n")
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
        if number == 1:
            continue  # names of the columns
        fields = line.strip().split("\t")
        if len(fields) < 5 or fields[0] not in ("0", "1"):
            problems.append(
                f"{path}:{number}: {line[:80]!r}, expected 0 or 1, two numbers and two sentences "
                "between tabs"
            )
            continue
        yield (_joined(fields[3]), _joined(fields[4])), int(fields[0])


def _joined(text: str) -> str:
    return " ".join(text.split())


_two_files = partial(Source, 2, _sentences)

SOURCES: Final = {
    "MR": _two_files(("MR/rt-polarity.pos", "MR/rt-polarity.neg")),
    "CR": _two_files(("CR/custrev.pos", "CR/custrev.neg")),
    "SUBJ": _two_files(("SUBJ/subj.objective", "SUBJ/subj.subjective")),
    "MPQA": _two_files(("MPQA/mpqa.pos", "MPQA/mpqa.neg")),
    "SST2": Source(
        2,
        _sst,
        ("SST/binary/sentiment-train",),
        ("SST/binary/sentiment-dev",),
        ("SST/binary/sentiment-test",),
    ),
    "TREC": Source(6, _trec, ("TREC/train_5500.label",), test=("TREC/TREC_10.label",)),
    "MRPC": Source(
        2,
        _mrpc,
        ("MRPC/msr_paraphrase_train.txt",),
        test=("MRPC/msr_paraphrase_test.txt",),
    ),
}
