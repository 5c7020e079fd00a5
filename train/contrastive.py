"""Contrastive fine-tuning: `python -m train.contrastive --mesh 4x2`.

The story of a run, in order: flags, devices, data, model, a score before, the steps with scores
and checkpoints between them, a score after, the best weights in RUN/adapter, RUN/report.html.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from train.config import SYNTHETIC, TrainConfig

if TYPE_CHECKING:
    from eval.tasks import Pairs
    from train.data import Triplet


PROGRAM: Final = "python -m train.contrastive"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    import tyro

    from prompteol_jax.commands import run_command

    options = tyro.cli(TrainConfig, args=argv, prog=PROGRAM)
    run_command(PROGRAM, run, options)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train as configured and return what `--json` gets."""
    config.check()
    from prompteol_jax import axes, distributed

    shape = axes.parse_mesh(config.mesh)
    distributed.simulate_devices(shape[0] * shape[1] // (config.processes or 1))
    distributed.initialize(config.coordinator, config.processes, config.process)
    triplets, dev = read_data(config)
    mesh = axes.make_mesh(shape)
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        _say(f"mesh {config.mesh}: {mesh.size} devices simulated on the CPU")

    from train import learning, loop
    from train.run_folder import RunFolder

    folder = RunFolder.find(config)
    batches = loop.make_batches(config, triplets)
    start = time.perf_counter()
    trainable = learning.make_trainable(config, mesh, loop.compute_dtype(config))
    course = loop.Course(config, folder, trainable, batches, dev)
    folder.begin(config)
    result = course.run()
    result["seconds"] = round(time.perf_counter() - start, 2)
    if distributed.is_primary():
        finish(config, folder.path, result)
    return result


def read_data(config: TrainConfig) -> tuple[Sequence[Triplet], Pairs | None]:
    """Read training rows and development pairs, and refuse what is malformed before any work."""
    from train.data import read_triplets

    if config.data == SYNTHETIC:
        from train import synthetic

        triplets = synthetic.synthetic_triplets(config.seed, synthetic.TRIPLETS)
        dev = synthetic.synthetic_dev(config.seed, synthetic.DEV_PAIRS)
    elif Path(config.data).is_dir():
        from train.prepared import read_prepared

        triplets, dev = read_prepared(Path(config.data)), None
    else:
        rows = read_triplets(Path(config.data), skip_bad=config.skip_bad)
        triplets, dev = rows.triplets, None
        if rows.skipped:
            _say(f"dropped {rows.skipped} malformed rows of {config.data}")
    if config.dev is not None:
        from eval.tasks import read_tasks

        dev = read_tasks(config.dev, ("STSBenchmark",), "dev")[0].subsets[0]
    return triplets, dev


def finish(config: TrainConfig, run: Path, result: dict[str, Any]) -> None:
    """Write the result and the report, and print the table."""
    from train.learning import exported
    from train.report import write_run_report

    weights = exported(run, full=config.full)
    page = write_run_report(run)
    if config.json:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
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
        f"best weights (step {result['best_step']}): {weights}\nreport: {page}",
        soft_wrap=True,
    )


def _say(line: str) -> None:
    from prompteol_jax import distributed

    if not distributed.is_primary():
        return
    from rich.console import Console

    Console(stderr=True).print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
