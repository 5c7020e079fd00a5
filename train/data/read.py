"""The data of a run, read and checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.sts.tasks import Pairs, Task, read_tasks
from prompteol_jax.storage import paths
from train.config import SYNTHETIC, TrainConfig
from train.data.triplets import Triplet
from train.run.say import say


class TrainingData(NamedTuple):
    """What a run trains on, what it is scored on, and the tasks of --final-eval."""

    rows: Sequence[Triplet]
    dev: Pairs | None
    tasks: Sequence[Task]


def read_data(config: TrainConfig) -> TrainingData:
    """Read rows, development pairs and tasks.

    Raises: UserError, NotFound for whatever is malformed.
    """
    rows, dev = _read_rows(config)
    if config.dev is not None:
        dev = read_tasks(config.dev, ("STSBenchmark",), "dev")[0].subsets[0]
    tasks = read_tasks(config.dev) if config.final_eval else ()
    return TrainingData(rows, dev, tasks)


def _read_rows(config: TrainConfig) -> tuple[Sequence[Triplet], Pairs | None]:
    """Read the rows; synthetic ones come with development pairs."""
    if config.data == SYNTHETIC:
        from train.data import synthetic

        rows = synthetic.synthetic_triplets(config.seed, synthetic.TRIPLETS)
        return rows, synthetic.synthetic_dev(config.seed, synthetic.DEV_PAIRS)
    path = paths.local_copy(config.data)
    if path.is_dir():
        from train.data.prepared import read_prepared

        return read_prepared(path), None
    from train.data.triplets import read_triplets

    read = read_triplets(path, skip_bad=config.skip_bad)
    if read.skipped:
        say(f"dropped {read.skipped} malformed rows of {config.data}")
    return read.triplets, None
