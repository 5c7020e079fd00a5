"""Contrastive fine-tuning: `python -m train.contrastive --mesh 4x2`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from train.config import STOPPED, TrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

PROGRAM: Final = "python -m train.contrastive"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, TrainConfig, run, argv)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train as the flags say and return what `--json` gets.

    Flags and data are checked, the model is loaded and scored, steps are taken with scores and
    checkpoints between them; the best weights are in RUN/adapter, the page is RUN/report.html.
    """
    config.check()
    from prompteol_jax import distributed
    from train.data.read import read_data
    from train.final_eval import final_scores
    from train.loop import Run
    from train.preemption import Stopped
    from train.resolve import resolve
    from train.run.folder import RunFolder
    from train.run.say import say
    from train.run.summary import finish

    mesh = start_devices(config)
    data = read_data(config)
    settings = resolve(config, mesh, data.rows)
    flags, start = settings.flags, time.perf_counter()
    with RunFolder.claim(flags, data.work) as folder:
        training = Run(settings, folder, data)
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


def start_devices(config: TrainConfig) -> Mesh:
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
