"""What a run writes of its steps: metrics.jsonl, TensorBoard events and a line of progress."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from prompteol_jax import distributed
from train.run.folder import METRICS

_LINE_EVERY_S: Final = 30.0  # between lines where standard error is no terminal


class MetricsLog:
    """Writes a record a step; on the primary process only.

    Args:
        run: the run's folder; records behind step `first` of an earlier attempt are gone already.
        first: steps taken so far; steps: of the whole run.
    """

    def __init__(self, run: Path, first: int, steps: int):
        self._run, self._first, self._steps = run, first, steps
        self._stack = contextlib.ExitStack()
        self._last_line = time.monotonic()
        self._start = self._last_line

    def __enter__(self) -> MetricsLog:
        if distributed.is_primary():
            from tensorboardX import SummaryWriter

            self._file = self._stack.enter_context(
                (self._run / METRICS).open("a", encoding="utf-8", buffering=1)
            )
            events = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._first + 1)
            self._events = self._stack.enter_context(contextlib.closing(events))
            self._progress = self._bar() if sys.stderr.isatty() else None
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, record: dict[str, Any]) -> None:
        """Record one step; `record["step"]` counts from 1."""
        if not distributed.is_primary():
            return
        self._file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name, value, record["step"])
        self._show(record)

    def _bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("train", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        text = "loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} sentences/s"
        progress = Progress(*columns, text, console=Console(stderr=True))
        self._stack.enter_context(progress)
        self._task = progress.add_task(
            "train", total=self._steps, completed=self._first, loss=float("nan"), rate=0.0
        )
        return progress

    def _show(self, record: dict[str, Any]) -> None:
        step, rate = record["step"], record["sentences_per_s"]
        if self._progress is not None:
            self._progress.update(self._task, completed=step, loss=record["loss"], rate=rate)
            return
        now = time.monotonic()
        if now - self._last_line < _LINE_EVERY_S and step not in (self._first + 1, self._steps):
            return
        self._last_line = now
        left = (now - self._start) / (step - self._first) * (self._steps - step)
        sys.stderr.write(
            f"step {step}/{self._steps}  loss {record['loss']:.4f}  {rate:,.0f} sentences/s  "
            f"{left:.0f} s left\n"
        )
        sys.stderr.flush()


def say(line: str) -> None:
    """Tell the user, on standard error; only one process does."""
    if not distributed.is_primary():
        return
    from rich.console import Console

    Console(stderr=True).print(line, soft_wrap=True, highlight=False)
