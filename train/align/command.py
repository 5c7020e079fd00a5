"""Preference alignment (DPO) on triplets: `python -m train.align --model M --data nli.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from train.align.config import AlignConfig
from train.callbacks import NO_CALLBACKS, Callbacks

PROGRAM: Final = "python -m train.align"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, AlignConfig, run, argv)


def run(config: AlignConfig, callbacks: Callbacks = NO_CALLBACKS) -> dict[str, Any]:
    """Align as the flags say and return what `--json` gets; see `train.contrastive.run`.

    Raises: UserError for flags or data that cannot work.
    """
    config.check()
    from train.align.resolve import resolve
    from train.align.run import AlignRun
    from train.contrastive import start_devices, take
    from train.data.read import read_data
    from train.run.summary import prepare

    mesh = start_devices(config)
    prepare(config)
    data = read_data(config)
    settings = resolve(config, mesh, data.rows)
    return take(AlignRun, settings, data, callbacks)
