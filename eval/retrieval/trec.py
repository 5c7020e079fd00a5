"""Rankings as TREC's run files: `query Q0 document rank score tag`, one hit a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eval.retrieval.metrics import Hit
from eval.retrieval.task import Retrieval
from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic


def check_ids(tasks: Sequence[Retrieval]) -> None:
    """Refuse ids that a run file cannot hold: empty ones, and those with white space.

    Raises: UserError naming the first of each task.
    """
    problems = []
    for task in tasks:
        odd = [name for name in (*task.queries.ids, *task.corpus.ids) if name.split() != [name]]
        if odd:
            problems.append(f"{task.name}: {len(odd)} ids such as {odd[0]!r} hold white space")
    if problems:
        raise UserError(f"no run file can be written: {'; '.join(problems)}. Leave --run out")


def file_of(path: Path, task: str, count: int) -> Path:
    """Return the file of one of several tasks."""
    return path if count == 1 else path.with_name(f"{path.stem}-{task}{path.suffix}")


def write(path: Path, hits: Mapping[str, Sequence[Hit]], tag: str) -> None:
    """Write a run file; trec_eval reads it to the same scores."""
    tag = "-".join(tag.split()) or "run"

    def lines(file: BinaryIO) -> None:
        for query, found in hits.items():
            for rank, hit in enumerate(found, start=1):
                score = np.format_float_positional(np.float32(hit.score), unique=True, trim="0")
                file.write(f"{query} Q0 {hit.document} {rank} {score} {tag}\n".encode())

    atomic.write_whole(path, lines)
