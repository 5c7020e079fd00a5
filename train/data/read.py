"""The data of a run, read and checked before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.sts.tasks import Pairs, Task, read_tasks
from prompteol_jax.storage import paths
from prompteol_jax.storage.fingerprint import files_sha256
from train.config import SYNTHETIC, TrainConfig
from train.data.triplets import Triplet
from train.run.say import say


class TrainingData(NamedTuple):
    """The data of a run.

    Attributes:
        rows: what it trains on; dev: what it is scored on; tasks: those of --final-eval.
        work: description of rows and pairs by their content, for `same_work`.
    """

    rows: Sequence[Triplet]
    dev: Pairs | None
    tasks: Sequence[Task]
    work: dict[str, Any]


def read_data(config: TrainConfig) -> TrainingData:
    """Read rows, development pairs and tasks.

    Raises: UserError, NotFound for data that is malformed or not there.
    """
    rows, dev, files = _read_rows(config)
    work: dict[str, Any] = {"data": files_sha256(files)}
    if config.dev is not None:
        dev = read_tasks(config.dev, ("STSBenchmark",), "dev")[0].subsets[0]
        text = json.dumps([*map(list, zip(dev.texts_a, dev.texts_b, dev.gold, strict=True))])
        work["dev"] = hashlib.sha256(text.encode()).hexdigest()
    tasks = read_tasks(config.dev) if config.final_eval and config.dev is not None else ()
    return TrainingData(rows, dev, tasks, work)


def _read_rows(config: TrainConfig) -> tuple[Sequence[Triplet], Pairs | None, list[Path]]:
    """Read the rows and name their files; synthetic rows come with development pairs."""
    if config.data == SYNTHETIC:
        from train.data import synthetic

        rows = synthetic.synthetic_triplets(config.seed, synthetic.TRIPLETS)
        return rows, synthetic.synthetic_dev(config.seed, synthetic.DEV_PAIRS), []
    path = paths.local_copy(config.data)
    if path.is_dir():
        from train.data.prepared import read_prepared

        return read_prepared(path), None, [path / name for name in paths.files(path)]
    from train.data.triplets import read_triplets

    read = read_triplets(path, skip_bad=config.skip_bad)
    if read.skipped:
        say(f"dropped {read.skipped} malformed rows of {config.data}")
    return read.triplets, None, [path]
