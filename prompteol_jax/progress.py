"""Progress on standard error: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, runtime_checkable

EVERY: Final = 60.0  # seconds between two lines of a log


@runtime_checkable
class Advance(Protocol):
    """Function that moves the bar on by some steps."""

    def __call__(self, steps: int = 1) -> None: ...


# Whether progress is shown, or the function of a bar over more work, which is called instead.
Progress = bool | Advance | None


class _LogLines:
    """Progress as lines of a log."""

    said_at = time.monotonic()  # of the process: short pieces of long work add up

    def __init__(self, label: str, total: int):
        self._label, self._total = label, total
        self._done, self._start = 0, time.monotonic()

    def __call__(self, steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        if now - _LogLines.said_at < EVERY:
            return
        _LogLines.said_at = now
        rate = self._done / max(now - self._start, 1e-9)
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        left = max(0, self._total - self._done) / rate if rate else 0.0
        sys.stderr.write(
            f"{self._label}: {self._done:,} of {self._total:,}{share}, {rate:,.0f}/s, "
            f"{duration(left)} left\n"
        )
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return a time to read: `2 h 5 min`, `5 min 30 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


@contextmanager
def progress_bar(label: str, total: int, show: Progress = None) -> Iterator[Advance]:
    """Show how far work is, with its rate and the time left.

    Args:
        label: name of the work.
        total: number of steps.
        show: True for a bar, False for nothing; by default a bar on a terminal, and elsewhere a
            line whenever a minute has passed without one, over all work of this process. A
            function is called in place of a bar.
    """
    if callable(show):
        yield show
        return
    if show is None and not sys.stderr.isatty():
        yield _LogLines(label, total)
        return
    if show is False:
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
