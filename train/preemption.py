"""What all processes of a run agree on after every step: whether to stop, and whether to save."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

from prompteol_jax.distributed import Channel


class Stopped(Exception):
    """The run was asked to stop, and has saved itself."""


class Decision(NamedTuple):
    """One agreement.

    Attributes:
        stop: some process was told to end.
        due: the minutes between saves are over.
        writing: some process is still writing the last save.
    """

    stop: bool
    due: bool
    writing: bool


class StopAgreement:
    """Listens for SIGTERM and watches the clock while it is entered.

    A second SIGTERM ends the process at once, as without us.

    Args:
        save_minutes: between saves; None for no limit.
    """

    def __init__(self, save_minutes: float | None):
        self._every_s = None if save_minutes is None else 60 * save_minutes
        self._channel = Channel("pulse")
        self._told = False
        self._saved = time.monotonic()

    def __enter__(self) -> StopAgreement:
        self._former: Any = None
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)

    def beat(self, *, writing: bool) -> Decision:
        """Agree with the others; the clock is that of the first process.

        Args:
            writing: this process still writes the last save.
        """
        late = self._every_s is not None and time.monotonic() - self._saved >= self._every_s
        told = self._channel.exchange([self._told, late, writing])
        stops, lates, writings = zip(*told, strict=True)
        return Decision(any(stops), lates[0], any(writings))

    def saved(self) -> None:
        """Start the minutes anew."""
        self._saved = time.monotonic()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        signal.signal(number, self._former)
