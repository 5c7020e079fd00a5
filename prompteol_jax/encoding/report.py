"""What a call of `encode` did, and how long its device waited."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax

_log = logging.getLogger("prompteol_jax")


@dataclass
class Report:
    """What one call did.

    Attributes:
        texts: number of texts; distinct: number of distinct ones, which are encoded.
        truncated: texts that were cut to `Embedder.max_tokens`.
        whole: texts that do not begin with the shared prefix, or are too long to share it, and
            were computed whole.
        tokens: ids of the texts themselves; padded_tokens: with padding and empty rows.
        batches: number of batches.
        shapes: shapes of batches that were compiled for this model, in this call or before.
        seconds: duration of the call; waited: seconds of it in which the device had nothing to
            do. Compilation does not count as waiting.
    """

    texts: int = 0
    distinct: int = 0
    truncated: int = 0
    whole: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    shapes: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, other: Report) -> None:
        """Count another call's work as part of this one; its texts are this one's again."""
        for field in ("truncated", "whole", "tokens", "padded_tokens", "batches"):
            setattr(self, field, getattr(self, field) + getattr(other, field))
        self.seconds += other.seconds
        self.waited += other.waited
        self.shapes = max(self.shapes, other.shapes)

    def log_truncated(self, max_tokens: int, positions: int) -> None:
        """Log how many texts were cut, if any were.

        Args:
            max_tokens: largest number of ids of a prompt; positions: of the model.
        """
        if self.truncated:
            of_model = max_tokens == positions
            _log.warning(
                "%d of %d texts were longer than %s %d %s allow and were cut",
                *(self.truncated, self.distinct),
                *("the model's" if of_model else "max_tokens", max_tokens),
                "positions" if of_model else "tokens",
            )

    @property
    def waiting(self) -> float:
        """The fraction of the time that the device waited for the host."""
        return self.waited / self.seconds if self.seconds else 0.0


class DeviceWatch:
    """Notes in a report for how long the device had nothing to do, from start to end."""

    def __init__(self, report: Report):
        self._report = report
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> DeviceWatch:
        self._start = self._free = time.perf_counter()
        return self

    def launched(self, z: jax.Array, start: float) -> None:
        """Note that the device could begin with `z` at this time, if it had done all before it."""
        self._pool.submit(self._wait, z, start)

    def _wait(self, z: jax.Array, start: float) -> None:
        self._report.waited += max(0.0, start - self._free)
        z.block_until_ready()
        self._free = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        end = time.perf_counter()
        self._report.waited += end - self._free
        self._report.seconds = end - self._start
