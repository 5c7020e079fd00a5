"""One progress bar for everything that takes a while, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Advance(Protocol):
    """TensorMaps the bar on by some steps."""

    def __call__(self, steps: int = 1) -> None: ...


@contextmanager
def progress_bar(label: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """Show a bar with rate and time left; by default only where standard error is a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda steps=1: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(label, total=total)
        yield lambda steps=1: progress.advance(task, steps)
