"""Requests to stop and the clock, as all processes of a run agree on them after every step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Final, NamedTuple

from prompteol_jax.distributed import Channel

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop, and has saved itself."""


class Signals(NamedTuple):
    """What all processes know after a step.

    Attributes:
        stop: some process received SIGTERM or, by Ctrl-C, SIGINT.
        minutes_are_over: the minutes between saves are over.
        writing: some process is still writing the last save.
    """

    stop: bool = False
    minutes_are_over: bool = False
    writing: bool = False


class StopAgreement:
    """Listens for SIGTERM and Ctrl-C, and watches the clock, while it is entered.

    A second signal acts as it does without us.

    Args:
        save_minutes: minutes between saves; None for no limit.
    """

    def __init__(self, save_minutes: float | None):
        self._every_s = None if save_minutes is None else 60 * save_minutes
        self._channel = Channel("stop")
        self._received = False
        self._former: dict[int, Any] = {}
        self._saved = time.monotonic()

    def __enter__(self) -> StopAgreement:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

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
        for each, former in self._former.items():
            signal.signal(each, former)
        if number == signal.SIGINT:
            sys.stderr.write("interrupted: saving after this step; press Ctrl-C again to end now\n")
