"""Score a model on LoCoV1: twelve tasks of long documents, mean nDCG@10.

    python -m eval.loco --model meta-llama/Llama-2-7b-hf --data LoCoV1 --max-tokens 4096

A query is ranked against the documents of its task alone. Scores of different --max-tokens do not
belong in one column.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.loco import tasks as loco
from eval.retrieval import command
from eval.retrieval.options import RankingOptions
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check

_log = logging.getLogger("eval")


@dataclass(frozen=True, kw_only=True)
class LocoOptions(RankingOptions):
    """Score a model on the twelve tasks of LoCoV1: 100 x nDCG@10 of each, and their mean."""

    data: Path
    """Folder with LoCoV1's documents/ and queries/."""
    tasks: tuple[str, ...] = ()
    """Tasks to score, such as qmsum gov_report; all twelve unless given."""

    def problems(self) -> list[str]:
        """List what does not fit between these flags."""
        missing = "--max-tokens is missing; give the length to score at, such as 2048 or 4096"
        return [*super().problems(), *([] if self.max_tokens else [missing])]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.loco", LocoOptions, run, argv)


def run(options: LocoOptions) -> dict[str, Any]:
    """Rank and score, print the table, write the files asked for and return the result."""
    check(options)
    command.prepare(options)
    tasks = loco.read(options.data, options.tasks)
    lacking = loco.incomplete(tasks)
    if lacking:
        listed = "; ".join(f"{name}: {what}" for name, what in lacking.items())
        _log.warning("%s is not the published data: %s", options.data, listed)
    data = {"folder": str(options.data), "split": loco.SPLIT, "incomplete": lacking}
    return command.score("eval.loco", tasks, data, options)
