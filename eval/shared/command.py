"""Flags that the commands of this package share, and the way from a command line to `run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompteol_jax.cli.commands import run_command
from prompteol_jax.cli.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(ModelOptions):
    """Flags of every command that scores a model."""

    raw: bool = False
    """Encode texts as they are, without the original's punctuation rules."""
    json: Path | None = None
    """File for the scores and every detail."""
    report: Path | None = None
    """File for a page of HTML with the scores and drawings."""


@dataclass(frozen=True, kw_only=True)
class SentEvalOptions(ScoringOptions):
    """Flags of every command that scores a model on SentEval's data."""

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""


def run_main(
    program: str, kind: type, run: Callable[[Any], object], argv: Sequence[str] | None
) -> None:
    """Parse a command line into options of a kind, and run the command with them."""
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    run_command(program, run, tyro.cli(kind, args=argv, prog=program, config=config))
