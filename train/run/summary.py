"""The end of a run: its result in a file, its page, and a table for the user."""

from __future__ import annotations

from typing import Any

from prompteol_jax import distributed
from prompteol_jax.storage import atomic, json_files, paths
from train.flags import RunConfig
from train.run.folder import RunFolder
from train.run.metrics import StepTimes
from train.run.report import write_run_report
from train.trainable import exported_folder


def prepare(flags: RunConfig) -> None:
    """Make the folder of the result's file, so that no run ends without a place to write it.

    Raises: IsAFolder, CannotWrite.
    """
    if flags.json and distributed.is_primary():
        atomic.prepare(paths.as_path(flags.json))


def finish(flags: RunConfig, folder: RunFolder, result: dict[str, Any], times: StepTimes) -> None:
    """Write the result and the page of a run, and print the table."""
    weights = exported_folder(folder.home, full=flags.full)
    page = folder.home / write_run_report(folder.path).name
    folder.publish()
    if flags.json:
        json_files.write_object(paths.as_path(flags.json), result)
    from rich.console import Console

    console = Console()
    if result["dev_before"] is not None:
        console.print(_scores(f"{flags.model} on {' '.join(flags.sources)}", result))
    console.print(
        f"{result['steps']} steps in {result['seconds']:.0f} s, loss {result['loss']:.4f}\n"
        f"{times}best weights (step {result['best_step']}): {weights}\nreport: {page}",
        soft_wrap=True,
    )


def _scores(title: str, result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("development Spearman", "score", "gain"):
        table.add_column(name, justify="left" if name.startswith("dev") else "right")
    for label, name in (("before", "dev_before"), ("best", "dev_after"), ("last step", "dev_last")):
        if (score := result[name]) is not None:
            table.add_row(label, f"{score:.2f}", f"{score - result['dev_before']:+.2f}")
    return table
