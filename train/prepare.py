"""Prepared datasets: triplets and STS pairs as ArrayRecord files that training reads by index.

    python -m train.prepare triplets --input nli_for_simcse.csv --output prepared
    python -m train.prepare nli --files snli_train.jsonl multinli_train.jsonl --output prepared
    python -m train.prepare sts --data SentEval/data/downstream --output prepared
    python -m train.prepare graded --data SentEval/data/downstream --output graded

A file is checked once, here. A run then starts without that check and holds none of it in memory:
`python -m train.contrastive --data prepared --dev prepared`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prompteol_jax.cli.commands import run_one_of
from prompteol_jax.storage import paths
from train.data.columns import SCORE
from train.data.triplets import (
    COLUMNS,
    ReadTriplets,
    columns_of,
    count_duplicates,
    read_triplets,
    renamed,
    row_class,
)

PROGRAM: Final = "python -m train.prepare"
SIMCSE_FILE: Final = "nli_for_simcse.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TripletOptions:
    """Prepares a csv or jsonl file of triplets, such as SimCSE's nli_for_simcse.csv."""

    input: str
    """A file or folder that --data of training takes, or a dataset of the hub such as
    princeton-nlp/datasets-for-simcse."""
    output: Path
    """The folder to write to, here or in a bucket (gs://)."""
    file: str = SIMCSE_FILE
    """The file of a hub dataset."""
    columns: tuple[str, ...] = ()
    """Columns of the file, where they have other names: sent0=premise sent1=hypothesis."""
    skip_bad: bool = False
    """Drop malformed rows and count them, instead of refusing the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NliOptions:
    """Builds triplets from SNLI and MultiNLI and prepares them."""

    files: tuple[Path, ...]
    """Their .jsonl or .txt files, in this order."""
    output: Path
    """The folder to write to, here or in a bucket (gs://)."""
    skip_bad: bool = False
    """Drop malformed lines and count them, instead of refusing the files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareStsOptions:
    """Prepares every STS set that SentEval's folder holds, test and development splits."""

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    output: Path
    """The folder to write to, here or in a bucket (gs://)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradedOptions:
    """Prepares the training pairs of STS-B with their scores, for losses over graded pairs."""

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    output: Path
    """The folder to write to, here or in a bucket (gs://)."""


def prepare_triplets(options: TripletOptions) -> None:
    """Prepare a file of triplets."""
    path = paths.local_copy(options.input)
    if not path.exists() and options.input.count("/") == 1 and not path.suffix:
        from prompteol_jax.pretrained import hub

        path = hub.dataset_file(options.input, options.file)
    names = renamed(options.columns)
    _write(read_triplets(path, skip_bad=options.skip_bad, columns=names), options.output)


def prepare_nli(options: NliOptions) -> None:
    """Prepare triplets built from SNLI and MultiNLI."""
    from train.data.nli import read_nli

    _write(read_nli(options.files, skip_bad=options.skip_bad), options.output)


def prepare_graded(options: GradedOptions) -> None:
    """Prepare graded pairs."""
    from eval.sts.tasks import read_tasks

    (task,) = read_tasks(options.data, split="train")
    graded = row_class(("sent0", "sent1", SCORE))
    rows = [
        graded(a, b, float(score))
        for pairs in task.subsets
        for a, b, score in zip(pairs.texts_a, pairs.texts_b, pairs.gold, strict=True)
    ]
    _write(ReadTriplets(rows, skipped=0), options.output)


def prepare_sts(options: PrepareStsOptions) -> None:
    """Prepare the STS sets."""
    from eval.sts.prepared import write_tasks
    from eval.sts.tasks import SPLITS, read_tasks

    tasks = [t for split in SPLITS for t in read_tasks(options.data, SPLITS[split], split)]
    with paths.upload_on_exit(options.output) as folder:
        place = write_tasks(tasks, folder)
    _say(f"{_shown(place, options.output)}: {sum(map(len, tasks))} pairs of {len(tasks)} sets")


def _write(rows: ReadTriplets, output: Path) -> None:
    from train.data.prepared import write_triplets

    with paths.upload_on_exit(output) as folder:
        place = write_triplets(rows.triplets, folder)
    dropped = f", {rows.skipped} malformed rows dropped" if rows.skipped else ""
    _say(f"{_shown(place, output)}: {len(rows.triplets)} {_kind(rows.triplets[0])}{dropped}")
    if doubled := count_duplicates(rows.triplets):
        _say(f"{doubled} of them repeat an earlier one")


def _kind(row: Any) -> str:
    columns = columns_of(row)
    if SCORE in columns:
        return "graded pairs"
    return {1: "sentences", 2: "pairs"}.get(len(columns), "triplets")


def _shown(dataset: Path, output: Path) -> Any:
    """Return where a dataset of the output is in the end."""
    return paths.as_path(output) / dataset.parent.name / dataset.name


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


COMMANDS: Final[Mapping[str, tuple[type, Callable[[Any], None]]]] = {
    "triplets": (TripletOptions, prepare_triplets),
    "nli": (NliOptions, prepare_nli),
    "sts": (PrepareStsOptions, prepare_sts),
    "graded": (GradedOptions, prepare_graded),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    description = f"Prepares datasets of {', '.join(COLUMNS)} or STS pairs as ArrayRecord files."
    run_one_of(PROGRAM, description, COMMANDS, argv)


if __name__ == "__main__":
    main()
