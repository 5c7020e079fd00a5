"""SIGTERM and the clock, as all processes of a run agree on them after every step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

from prompteol_jax.distributed import Channel


class Stopped(Exception):
    """The run was asked to stop, and has saved itself."""


class Signals(NamedTuple):
    """What all processes know after a step.

    Attributes:
        stop: some process received SIGTERM.
        minutes_are_over: the minutes between saves are over.
        writing: some process is still writing the last save.
    """

    stop: bool = False
    minutes_are_over: bool = False
    writing: bool = False


class StopAgreement:
    """Listens for SIGTERM and watches the clock while it is entered.

    A second SIGTERM ends the process immediately.

    Args:
        save_minutes: minutes between saves; None for no limit.
    """

    def __init__(self, save_minutes: float | None):
        self._every_s = None if save_minutes is None else 60 * save_minutes
        self._channel = Channel("stop")
        self._received = False
        self._saved = time.monotonic()

    def __enter__(self) -> StopAgreement:
        self._former: Any = None
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)

    def agree(self, *, writing: bool) -> Signals:
        """Exchange signals with the other processes; the clock is that of the first one.

        Args:
            writing: this process still writes the last save.
        """
        late = self._every_s is not None and time.monotonic() - self._saved >= self._every_s
        said = self._channel.exchange([self._received, late, writing])
        stops, lates, writings = zip(*said, strict=True)
        return Signals(any(stops), lates[0], any(writings))

    def saved(self) -> None:
        """Restart the clock."""
        self._saved = time.monotonic()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        signal.signal(number, self._former)
