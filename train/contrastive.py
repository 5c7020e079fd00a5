"""Contrastive fine-tuning: `python -m train.contrastive --mesh 4x2`.

The story of a run, in order: flags, devices, data, model, a score before, the steps with scores
and checkpoints between them, a score after, the best weights in RUN/adapter, RUN/report.html.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from train.config import STOPPED, SYNTHETIC, TrainConfig

if TYPE_CHECKING:
    from eval.sts.tasks import Pairs, Task
    from prompteol_jax.embedder import Embedder
    from train.data.triplets import Triplet
    from train.run.folder import RunFolder


PROGRAM: Final = "python -m train.contrastive"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    import tyro

    from prompteol_jax.cli.commands import run_command

    options = tyro.cli(TrainConfig, args=argv, prog=PROGRAM)
    run_command(PROGRAM, run, options)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train as configured and return what `--json` gets."""
    config.check()
    from prompteol_jax import distributed, runtime
    from prompteol_jax.mesh import make_mesh, parse_mesh
    from train.run.metrics import say

    shape = parse_mesh(config.mesh)
    runtime.simulate_devices(shape[0] * shape[1] // (config.processes or 1))
    distributed.initialize(config.coordinator, config.processes, config.process)
    triplets, dev = read_data(config)
    tasks = read_final_tasks(config)
    mesh = make_mesh(shape)
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        say(f"mesh {config.mesh}: {mesh.size} devices simulated on the CPU")

    from train import loop

    start = time.perf_counter()
    course = loop.make_run(config, mesh, triplets, dev)
    config, folder = course.config, course.folder
    folder.begin(config)
    try:
        result = course.run()
    except loop.Stopped as stopped:
        say(f"stopped at {stopped}, which is saved: go on with --resume --output {folder.home}")
        raise SystemExit(STOPPED) from None
    if config.final_eval:
        result["sts"] = final_scores(config, course.best(), tasks, folder)
    result["seconds"] = round(time.perf_counter() - start, 2)
    if distributed.is_primary():
        finish(config, folder, result, course.remarks())
    return result


def read_final_tasks(config: TrainConfig) -> Sequence[Task]:
    """Read what `--final-eval` scores, before any work."""
    if not config.final_eval:
        return ()
    from eval.sts.tasks import read_tasks

    return read_tasks(config.dev)


def final_scores(
    config: TrainConfig, embedder: Embedder, tasks: Sequence[Task], folder: RunFolder
) -> dict[str, float]:
    """Score the best weights on all STS tasks, as eval.sts does, into RUN/sts.json."""
    from eval.shared import results
    from eval.sts import command as sts
    from eval.sts import report
    from prompteol_jax import distributed

    options = sts.StsOptions(
        model=config.model,
        adapter=None if config.full else str(folder.home),
        template=config.template,
        mesh=config.mesh,
        dtype=config.dtype,
        data=config.dev,
        json=folder.path / "sts.json",
    )
    result, _ = sts.score(embedder, tasks, options)
    if distributed.is_primary():
        report.print_scores(result)
        results.write(options.json, result)
    return {**result["scores"], "average": result["average"]}


def read_data(config: TrainConfig) -> tuple[Sequence[Triplet], Pairs | None]:
    """Read training rows and development pairs, and refuse what is malformed before any work."""
    from prompteol_jax.storage import paths
    from train.data.triplets import read_triplets
    from train.run.metrics import say

    data = None if config.data == SYNTHETIC else paths.local_copy(config.data)

    if data is None:
        from train.data import synthetic

        triplets = synthetic.synthetic_triplets(config.seed, synthetic.TRIPLETS)
        dev = synthetic.synthetic_dev(config.seed, synthetic.DEV_PAIRS)
    elif data.is_dir():
        from train.data.prepared import read_prepared

        triplets, dev = read_prepared(data), None
    else:
        rows = read_triplets(data, skip_bad=config.skip_bad)
        triplets, dev = rows.triplets, None
        if rows.skipped:
            say(f"dropped {rows.skipped} malformed rows of {config.data}")
    if config.dev is not None:
        from eval.sts.tasks import read_tasks

        dev = read_tasks(config.dev, ("STSBenchmark",), "dev")[0].subsets[0]
    return triplets, dev


def finish(config: TrainConfig, folder: RunFolder, result: dict[str, Any], remarks: str) -> None:
    """Write the result and the report, and print the table."""
    from prompteol_jax.storage import paths
    from train.run.report import write_run_report
    from train.trainable import exported_folder

    weights = exported_folder(folder.home, full=config.full)
    page = folder.home / write_run_report(folder.path).name
    folder.publish()
    if config.json:
        place = paths.as_path(config.json)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{config.model} on {config.data}", title_justify="left")
    for name in ("development Spearman", "score", "gain"):
        table.add_column(name, justify="left" if name.startswith("dev") else "right")
    before = result["dev_before"]
    for label, name in (("before", "dev_before"), ("best", "dev_after"), ("last step", "dev_last")):
        score = result[name]
        if score is not None:
            table.add_row(label, f"{score:.2f}", f"{score - before:+.2f}")
    if before is not None:
        Console().print(table)
    Console().print(
        f"{result['steps']} steps in {result['seconds']:.0f} s, loss {result['loss']:.4f}\n"
        f"{remarks}"
        f"best weights (step {result['best_step']}): {weights}\nreport: {page}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
