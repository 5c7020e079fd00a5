"""The data of a run, read and checked before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.sts.tasks import Pairs, Task, read_tasks
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths
from prompteol_jax.storage.fingerprint import files_sha256
from train.data import files
from train.data.mixture import Mixture
from train.data.teacher import with_teacher
from train.data.triplets import count_duplicates, read_triplets, renamed
from train.flags import SYNTHETIC, RunConfig
from train.run.say import say


class TrainingData(NamedTuple):
    """The data of a run.

    Attributes:
        rows: what it trains on; dev: what it is scored on; tasks: those of --final-eval.
        work: description of rows and pairs by their content, for `same_work`.
    """

    rows: Sequence[Any]
    dev: Pairs | None
    tasks: Sequence[Task]
    work: dict[str, Any]


def read_data(config: RunConfig) -> TrainingData:
    """Read rows, development pairs and tasks.

    Raises: UserError, NotFound for data that is malformed or not there.
    """
    rows, dev, digests = _read_rows(config)
    work: dict[str, Any] = {"data": digests}
    if config.teacher is not None:
        rows = with_teacher(rows, config.teacher)
        work["teacher"] = files_sha256([paths.local_copy(config.teacher)])
    if config.dev is not None:
        dev = read_tasks(config.dev, ("STSBenchmark",), "dev")[0].subsets[0]
        text = json.dumps([*map(list, zip(dev.texts_a, dev.texts_b, dev.gold, strict=True))])
        work["dev"] = hashlib.sha256(text.encode()).hexdigest()
    tasks = read_tasks(config.dev) if config.final_eval and config.dev is not None else ()
    return TrainingData(rows, dev, tasks, work)


def _read_rows(config: RunConfig) -> tuple[Sequence[Any], Pairs | None, dict[str, Any]]:
    """Read the rows and digest their files, of several sources by the name of each; synthetic rows
    come with development pairs.
    """
    if config.data == SYNTHETIC:
        from train.data import synthetic

        dev = synthetic.synthetic_dev(config.seed, synthetic.DEV_PAIRS)
        return synthetic.synthetic_triplets(config.seed, synthetic.TRIPLETS), dev, {}
    sources = {name: _read_source(name, config) for name in config.sources}
    rows = {name: own for name, (own, _) in sources.items()}
    digests = {name: files_sha256(own) for name, (_, own) in sources.items()}
    if len(sources) == 1:
        (name,) = sources
        return rows[name], None, digests[name]
    return Mixture(rows, config.weights), None, digests


def _read_source(name: str, config: RunConfig) -> tuple[Sequence[Any], list[Path]]:
    """Read the rows of one source, and name its files."""
    path = paths.local_copy(name)
    if path.is_dir() and not files.is_tables(path):  # which `train.prepare` wrote
        from train.data.prepared import read_prepared

        if config.columns:
            raise UserError(f"--columns is for files; {name} is prepared, under our names")
        return read_prepared(path), [path / file for file in paths.files(path)]
    read = read_triplets(path, skip_bad=config.skip_bad, columns=renamed(config.columns))
    if read.skipped:
        say(f"dropped {read.skipped} malformed rows of {name}")
    if doubled := count_duplicates(read.triplets):
        say(f"{doubled} rows of {name} repeat an earlier one")
    return read.triplets, files.files_of(path)
