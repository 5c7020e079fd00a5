"""What a run writes of its steps: metrics.jsonl, TensorBoard events and progress."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from prompteol_jax import distributed
from prompteol_jax.progress import duration
from train.run.folder import METRICS
from train.run.say import console

if TYPE_CHECKING:
    from train.data.collate import CollatedBatch

_LINE_EVERY_S: Final = 30.0  # between lines where standard error is no terminal


class StepTimes:
    """Seconds of steps and saves, and the padding of batches, for the closing lines of a run."""

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self.saves_s: list[float] = []
        self.padding: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Begin a step: what came before belongs to none."""
        self._start = time.perf_counter()

    def step_done(self) -> float:
        """End a step, begin the next one, and return the seconds between."""
        start = self._start
        self.restart()
        self.steps_s.append(self._start - start)
        return self.steps_s[-1]

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Time a save."""
        start = time.perf_counter()
        yield
        self.saves_s.append(time.perf_counter() - start)

    def __str__(self) -> str:
        if not self.steps_s:
            return ""
        longest, step_s = max(self.saves_s, default=0.0), float(np.median(self.steps_s))
        return (
            f"padding: {np.mean(self.padding):.1%} of the tokens computed\n"
            f"saves: {len(self.saves_s)}, the longest delayed a step by {longest:.3f} s "
            f"({longest / step_s:.1%} of a step)\n"
        )


def step_record(
    step: int, values: Mapping[str, float], lr: float, seconds: float, batch: CollatedBatch
) -> dict[str, Any]:
    """Return the line of a step in metrics.jsonl.

    Args:
        step: number of the step, from 1.
        values: loss, gradient norm and the other metrics of the loss, by name.
    """
    others = {name: value for name, value in values.items() if name not in ("loss", "grad_norm")}
    return {
        "step": step,
        "loss": values["loss"],
        **others,
        "lr": lr,
        "grad_norm": values["grad_norm"],
        "step_s": seconds,
        "sentences_per_s": batch.sentences / seconds,
        "padding": batch.padding,
    }


class MetricsLog:
    """Writes a record of every step; on the primary process only.

    Args:
        run: folder of the run; records after step `first` of an earlier attempt are gone already.
        first: number of steps taken so far; steps: number of steps of the whole run.
    """

    def __init__(self, run: Path, first: int, steps: int):
        self._run, self._first, self._steps = run, first, steps
        self._stack = contextlib.ExitStack()
        self._start: float | None = None

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
        if self._progress is not None:
            self._advance(self._progress, record)
        else:
            self._write_line(record)

    def _bar(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("train", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        text = "loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} sentences/s"
        progress = Progress(*columns, text, console=console())
        self._stack.enter_context(progress)
        self._task = progress.add_task(
            *("train", False, self._steps, self._first), loss=float("nan"), rate=0.0
        )
        return progress

    def _advance(self, bar: Any, record: dict[str, Any]) -> None:
        """Move the bar; its clock starts at the first step, after the compilation."""
        if self._start is None:
            self._start = time.monotonic()
            bar.start_task(self._task)
        loss, rate = record["loss"], record["sentences_per_s"]
        bar.update(self._task, completed=record["step"], loss=loss, rate=rate)

    def _write_line(self, record: dict[str, Any]) -> None:
        """Write a line now and then; the time left is that of the steps so far, not compilation."""
        step, now = record["step"], time.monotonic()
        start = self._start
        if start is None:
            self._start = start = now - record["step_s"]
        elif now - self._last_line < _LINE_EVERY_S and step != self._steps:
            return
        self._last_line = now
        left = (now - start) / (step - self._first) * (self._steps - step)
        sys.stderr.write(
            f"step {step}/{self._steps}  loss {record['loss']:.4f}  "
            f"{record['sentences_per_s']:,.0f} sentences/s  {duration(left)} left\n"
        )
        sys.stderr.flush()
