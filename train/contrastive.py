"""Contrastive fine-tuning: `python -m train.contrastive --mesh 4x2`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from train.callbacks import NO_CALLBACKS, Callbacks
from train.config import STOPPED, TrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from train.data.read import TrainingData
    from train.flags import RunConfig
    from train.loop import Run
    from train.resolve import ResolvedConfig

PROGRAM: Final = "python -m train.contrastive"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, TrainConfig, run, argv)


def run(config: TrainConfig, callbacks: Callbacks = NO_CALLBACKS) -> dict[str, Any]:
    """Train as the flags say and return what `--json` gets.

    Flags and data are checked, the model is loaded and scored, steps are taken with scores and
    checkpoints between them; the best weights are in RUN/adapter, the page is RUN/report.html.

    Args:
        callbacks: functions that get the record of every step and score.
    Raises: UserError for flags or data that cannot work; SystemExit of status 75 after SIGTERM.
    """
    config.check()
    from train.data.read import read_data
    from train.loop import Run
    from train.resolve import resolve
    from train.run.summary import prepare

    mesh = start_devices(config)
    prepare(config)
    data = read_data(config)
    return take(Run, resolve(config, mesh, data.rows), data, callbacks)


def take(
    kind: type[Run], settings: ResolvedConfig, data: TrainingData, callbacks: Callbacks
) -> dict[str, Any]:
    """Take a run of a kind from its first step to its last; see `run`."""
    from prompteol_jax import distributed
    from train.final_eval import final_scores
    from train.preemption import Stopped
    from train.run.folder import RunFolder
    from train.run.say import say
    from train.run.summary import finish

    flags, start = settings.flags, time.perf_counter()
    with RunFolder.claim(flags, data.work) as folder:
        training = kind(settings, folder, data, callbacks)
        folder.begin()
        try:
            result = training.run()
        except Stopped as stopped:
            say(f"stopped at {stopped}, which is saved: go on with --resume --output {folder.home}")
            raise SystemExit(STOPPED) from None
        if data.tasks:
            result["sts"] = final_scores(flags, training.best(), data.tasks, folder)
        result["seconds"] = round(time.perf_counter() - start, 2)
        if distributed.is_primary():
            finish(flags, folder, result, training.times)
        return result


def start_devices(config: RunConfig) -> Mesh:
    """Join the other processes, if any, and return the mesh of all devices."""
    from prompteol_jax import runtime
    from prompteol_jax.mesh import make_mesh, parse_mesh
    from train.run.say import say

    shape = parse_mesh(config.mesh)
    runtime.simulate_devices(shape[0] * shape[1] // (config.processes or 1))
    config.join()
    mesh = make_mesh(shape)
    if runtime.is_simulated(mesh):
        say(f"mesh {config.mesh}: {mesh.size} devices simulated on the CPU")
    return mesh


if __name__ == "__main__":
    main()
