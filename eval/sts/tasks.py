"""The seven semantic-similarity tasks, read from SentEval's `downstream` folder.

A task is one or more subsets of sentence pairs with gold similarities. Reading checks every file
completely, so that nothing about the data can fail once a model has been loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from eval.shared import datasets, senteval
from eval.sts.pairs import Pairs, Task
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths as places

# STS13 is without its SMT part, whose license keeps it out of SentEval.
YEARS: Final = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}


class Table(NamedTuple):
    """A tab-separated file per split, with the columns of its two sentences and its gold score."""

    files: dict[str, str]
    text_a: int
    text_b: int
    gold: int
    header_lines: int
    least: float


TABLES: Final = {
    "STSBenchmark": Table(
        {split: f"STS/STSBenchmark/sts-{split}.csv" for split in ("test", "dev", "train")},
        text_a=5,
        text_b=6,
        gold=4,
        header_lines=0,
        least=0.0,
    ),
    "SICKRelatedness": Table(
        {"test": "SICK/SICK_test_annotated.txt", "dev": "SICK/SICK_trial.txt"},
        text_a=1,
        text_b=2,
        gold=3,
        header_lines=1,
        least=1.0,
    ),
}

MOST: Final = 5.0  # the highest gold score of every task
SHORT: Final = {"STS-B": "STSBenchmark", "STSB": "STSBenchmark", "SICK-R": "SICKRelatedness"}
SPLITS: Final = {"test": (*YEARS, *TABLES), "dev": tuple(TABLES), "train": ("STSBenchmark",)}
DEFAULTS: Final = SPLITS | {"dev": ("STSBenchmark",)}


def read_tasks(
    folder: str | Path, names: Sequence[str] = (), split: str = "test"
) -> tuple[Task, ...]:
    """Read tasks from SentEval's `downstream` folder, the folder that holds it, or a prepared one.

    Without names these are the seven tasks of the paper (test) or STSBenchmark (dev, train). A task
    of another split than test carries it in its name, as `-dev`. Pairs without gold are dropped, as
    SentEval does. A task with another number of pairs than the published one is logged.

    Raises: UserError naming an unknown split or task, or all lines that cannot be read; NotFound
        naming the folder, or all missing files.
    """
    names = _check_names(names, split)
    folder = places.local_copy(folder)
    if any(folder.glob("sts/*/dataset_info.json")):
        from eval.sts import prepared  # brings TFDS, which few need

        tasks = prepared.read_prepared(folder, [_title(name, split) for name in names])
        datasets.warn_of_incomplete(_rows(tasks), folder)
        return tasks
    root = senteval.downstream(folder, ("STS", "SICK"))
    senteval.check(root, [path for name in names for path in _files(root, name, split)])
    problems: list[str] = []
    tasks = tuple(_read_task(root, name, split, problems) for name in names)
    senteval.refuse(root, problems)
    datasets.warn_of_incomplete(_rows(tasks), root)
    return tasks


def describe_data(folder: Path, split: str, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the record of the data in a result file; see `datasets.describe`."""
    content = (
        [task.name, pairs.name, list(pairs.texts_a), list(pairs.texts_b), pairs.gold.tolist()]
        for task in tasks
        for pairs in task.subsets
    )
    return datasets.describe(folder, split, _rows(tasks), content)


def _rows(tasks: Sequence[Task]) -> dict[str, tuple[int, ...]]:
    return {task.name: (len(task),) for task in tasks}


def _check_names(names: Sequence[str], split: str) -> tuple[str, ...]:
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    senteval.check_names(f"{split} split of", names, SPLITS[split], SHORT)
    return tuple(dict.fromkeys(names)) or DEFAULTS[split]


def _files(root: Path, name: str, split: str) -> list[Path]:
    if name in TABLES:
        return [root / TABLES[name].files[split]]
    year = root / "STS" / f"{name}-en-test"
    return [year / f"STS.{kind}.{subset}.txt" for subset in YEARS[name] for kind in ("input", "gs")]


def _read_task(root: Path, name: str, split: str, problems: list[str]) -> Task:
    paths = _files(root, name, split)
    if name in TABLES:
        title = _title(name, split)
        return Task(title, (_read_table(paths[0], title, TABLES[name], problems),))
    subsets = zip(YEARS[name], paths[::2], paths[1::2], strict=True)
    return Task(name, tuple(_read_year(*subset, problems) for subset in subsets))


def _title(name: str, split: str) -> str:
    return name if split == "test" else f"{name}-{split}"


def _read_year(name: str, input_file: Path, gold_file: Path, problems: list[str]) -> Pairs:
    """Read the pairs of one file and their gold of another; an empty gold line drops its pair."""
    before = len(problems)
    golds = dict(senteval.lines(gold_file, problems))
    rows, dropped, count = [], 0, 0
    for number, line in senteval.lines(input_file, problems):
        count += 1
        place = f"{input_file}:{number}"
        fields = line.split("\t")
        gold = golds.get(number, "").strip()
        if len(fields) != 2:
            problems.append(f"{place}: {len(fields)} tab-separated fields, expected 2 sentences")
        elif gold:
            rows.append((place, *fields, f"{gold_file}:{number}", gold))
        else:
            dropped += 1
    if count != len(golds):
        problems.append(f"{input_file}: {count} pairs, but {len(golds)} lines in {gold_file.name}")
    return _pairs(name, input_file, rows, _Checks(0.0, dropped, before), problems)


def _read_table(file: Path, name: str, table: Table, problems: list[str]) -> Pairs:
    """Read pairs and gold from the columns of one file."""
    before = len(problems)
    width = 1 + max(table.text_a, table.text_b, table.gold)
    rows = []
    for number, line in senteval.lines(file, problems):
        if number <= table.header_lines:
            continue
        place = f"{file}:{number}"
        fields = line.split("\t")
        if len(fields) < width:
            problems.append(f"{place}: {len(fields)} tab-separated fields, expected {width}")
        else:
            texts = fields[table.text_a], fields[table.text_b]
            rows.append((place, *texts, place, fields[table.gold].strip()))
    return _pairs(name, file, rows, _Checks(table.least, 0, before), problems)


class _Checks(NamedTuple):
    """The lowest gold score, the pairs that were dropped, and the problems before this file."""

    least: float
    dropped: int
    before: int


def _pairs(
    name: str,
    file: Path,
    rows: list[tuple[str, str, str, str, str]],
    checks: _Checks,
    problems: list[str],
) -> Pairs:
    """Check rows of (line, sentence, sentence, line of the gold, gold) and join them."""
    least = checks.least
    kept = []
    for place, text_a, text_b, gold_place, gold in rows:
        # The original splits at white space and joins the tokens by single spaces.
        text_a, text_b = " ".join(text_a.split()), " ".join(text_b.split())
        if not (text_a and text_b):
            problems.append(f"{place}: an empty sentence")
        score = _number(gold)
        if not least <= score <= MOST:
            problems.append(f"{gold_place}: gold {gold!r:.80}, expected {least:g} to {MOST:g}")
        kept.append((text_a, text_b, score))
    texts_a, texts_b, golds = zip(*kept, strict=True) if kept else ((), (), ())
    if len(set(golds)) < 2 and len(problems) == checks.before:
        problems.append(f"{file}: rank correlation needs two different gold scores")
    return Pairs(name, texts_a, texts_b, np.array(golds, np.float64), checks.dropped)


def _number(text: str) -> float:
    """Convert text to a number, and what is none to NaN, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
