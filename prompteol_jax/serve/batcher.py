"""Merge the texts of many requests into batches of fixed shape, with one thread on the device.

A text waits in the bucket of its length. A full batch leaves first, the oldest first. If the device
has nothing to do, the bucket of the oldest text leaves as it is. There is no timer. A text that has
waited for several batches leaves before full ones. The shape that a text is computed in depends on
its length alone, so its vector has the same bits under any load.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from jaxtyping import Float

IN_FLIGHT: Final = 2  # batches that the device has at a time
PATIENCE: Final = 4  # batches after which a waiting text goes first
GRACE_S: Final = 30.0  # beyond ten times its usual duration, a batch is overdue

Bucket = tuple[int, bool]


class Device(Protocol):
    """What computes batches."""

    def bucket(self, ids: np.ndarray, shared: bool) -> Bucket:
        """Return the bucket of a prompt."""
        ...

    def rows(self, bucket: Bucket) -> int:
        """Return the rows of a bucket's batches."""
        ...

    def launch(self, bucket: Bucket, prompts: Sequence[np.ndarray]) -> Any:
        """Start computing a batch."""
        ...

    def fetch(self, launched: Any) -> Float[np.ndarray, "n D"]:
        """Wait for a batch and return the vectors of its prompts."""
        ...


class DeviceFailed(Exception):
    """The thread of the device ended; nothing can be computed any more."""


@dataclass(eq=False)
class Job:
    """The texts of one request.

    Attributes:
        done: function that is called once, from the device's thread, with the vectors or an error.
        cancelled: the client left; rows that are not launched yet are dropped.
    """

    texts: int
    done: Callable[[Float[np.ndarray, "n D"] | Exception], None]
    started: float = field(default_factory=time.perf_counter)
    launched: float | None = None
    cancelled: bool = False
    vectors: list[np.ndarray | None] = field(default_factory=list)
    missing: int = 0

    def __post_init__(self) -> None:
        self.vectors = [None] * self.texts
        self.missing = self.texts

    def put(self, index: int, vector: np.ndarray) -> None:
        """Take a vector; the last one ends the job."""
        self.vectors[index] = vector
        self.missing -= 1
        if self.missing == 0 and not self.cancelled:
            self.done(np.stack(self.vectors))

    def fail(self, error: Exception) -> None:
        """End the job with an error, once."""
        if not self.cancelled and self.missing:
            self.cancelled = True
            self.done(error)


@dataclass(frozen=True)
class _Waiting:
    """A text in its bucket; `number` counts texts, `batches` the batches launched before it."""

    number: int
    batches: int
    job: Job
    index: int
    ids: np.ndarray


class Batcher:
    """The queue in front of the device. Start it with `start`; `close` lets it finish.

    Args:
        device: what computes; used by one thread alone.
        observe: function that gets the events of `Events`, for metrics.
    """

    def __init__(self, device: Device, observe: Callable[[str, Any, float], None] | None = None):
        self._device = device
        self._observe = observe or (lambda event, label, value: None)
        self._waiting: dict[Bucket, deque[_Waiting]] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._launched = 0
        self._closing = False
        self._failure: Exception | None = None
        self._in_flight: deque[tuple[Bucket, list[_Waiting], Any, float]] = deque()
        self._usual_s: dict[Bucket, float] = {}
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Start the device's thread."""
        self._thread.start()

    def submit(self, job: Job, ids: Sequence[np.ndarray], shared: Sequence[bool]) -> None:
        """Queue the prompts of a job.

        Raises: DeviceFailed after the device's thread has ended.
        """
        with self._changed:
            if self._failure is not None:
                raise DeviceFailed(str(self._failure))
            for index, (own, follows) in enumerate(zip(ids, shared, strict=True)):
                bucket = self._device.bucket(own, bool(follows))
                text = _Waiting(next(self._numbers), self._launched, job, index, own)
                self._waiting.setdefault(bucket, deque()).append(text)
            self._changed.notify()

    def overdue(self) -> float:
        """Return the seconds by which the oldest batch in flight is late; 0 where none is."""
        with self._changed:
            if not self._in_flight:
                return 0.0
            bucket, _, _, start = self._in_flight[0]
            allowed = 10 * self._usual_s.get(bucket, 60.0) + GRACE_S
        return max(0.0, time.perf_counter() - start - allowed)

    @property
    def failure(self) -> Exception | None:
        """The error that ended the device's thread."""
        return self._failure

    def close(self) -> None:
        """Compute what was submitted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:
            self._fail(error)

    def _step(self) -> bool:
        """Launch a batch, or fetch one, or wait; say whether to go on."""
        with self._changed:
            while not (chosen := self._choose()) and not self._in_flight:
                if self._closing:
                    return False
                self._changed.wait()
        if chosen is None:
            self._fetch()
            return True
        bucket, texts = chosen
        now = time.perf_counter()
        for text in texts:
            text.job.launched = text.job.launched or now
        try:
            launched = self._device.launch(bucket, [text.ids for text in texts])
        except Exception as error:
            self._fail_batch(texts, error)
            return True
        with self._changed:
            self._in_flight.append((bucket, texts, launched, now))
        self._observe("launched", bucket, len(texts))
        return True

    def _choose(self) -> tuple[Bucket, list[_Waiting]] | None:
        """Take the next batch out of its bucket; None where the device should be waited for."""
        for bucket in list(self._waiting):
            self._drop_cancelled(bucket)
        if len(self._in_flight) >= IN_FLIGHT or not self._waiting:
            return None
        by_age = sorted(self._waiting, key=lambda bucket: self._waiting[bucket][0].number)
        oldest = by_age[0]
        starved = self._launched - self._waiting[oldest][0].batches >= PATIENCE
        full = [b for b in by_age if len(self._waiting[b]) >= self._device.rows(b)]
        if starved or (not full and not self._in_flight):
            return self._take(oldest)
        return self._take(full[0]) if full else None

    def _drop_cancelled(self, bucket: Bucket) -> None:
        kept = deque(text for text in self._waiting[bucket] if not text.job.cancelled)
        dropped = len(self._waiting[bucket]) - len(kept)
        if dropped:
            self._observe("dropped", bucket, dropped)
        if kept:
            self._waiting[bucket] = kept
        else:
            del self._waiting[bucket]

    def _take(self, bucket: Bucket) -> tuple[Bucket, list[_Waiting]]:
        queue = self._waiting[bucket]
        texts = [queue.popleft() for _ in range(min(len(queue), self._device.rows(bucket)))]
        if not queue:
            del self._waiting[bucket]
        self._launched += 1
        return bucket, texts

    def _fetch(self) -> None:
        bucket, texts, launched, start = self._in_flight[0]
        try:
            z_nD = self._device.fetch(launched)
        except Exception as error:
            self._fail_batch(texts, error)
        else:
            for text, vector in zip(texts, z_nD, strict=True):
                text.job.put(text.index, vector)
        seconds = time.perf_counter() - start
        with self._changed:
            self._in_flight.popleft()
            self._usual_s[bucket] = seconds
        self._observe("computed", bucket, seconds)

    def _fail_batch(self, texts: Sequence[_Waiting], error: Exception) -> None:
        for text in texts:
            text.job.fail(error)

    def _fail(self, error: Exception) -> None:
        """Fail everything that waits: the thread is about to end."""
        with self._changed:
            self._failure = error
            waiting = [text for queue in self._waiting.values() for text in queue]
            waiting += [text for _, texts, _, _ in self._in_flight for text in texts]
            self._waiting.clear()
        for text in waiting:
            text.job.fail(DeviceFailed(str(error)))
