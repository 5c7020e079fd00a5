"""Flags that the commands of this package share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
