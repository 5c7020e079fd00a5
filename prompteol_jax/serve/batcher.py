"""Merge the texts of many requests into batches of fixed shape, launched by one thread.

A text waits in the bucket of its length. A full batch leaves first, the oldest first. If the device
has nothing to do, the bucket of the oldest text leaves, with the buckets that fill its batch best.
There is no timer. A text that has waited for several batches leaves before full ones. The shapes
that a text may be computed in are those that are shown to give it the same bits, so its vector has
them under any load.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from prompteol_jax.encoding.merging import Bucket, Shapes, sharing

IN_FLIGHT: Final = 2  # batches that the device has at a time
PATIENCE: Final = 4  # batches after which a waiting text goes first
GRACE_S: Final = 30.0  # beyond ten times its usual duration, a batch is overdue


@runtime_checkable
class Device(Shapes, Protocol):
    """What computes batches."""

    def bucket(self, item: Any) -> Bucket:
        """Return the bucket of a prompt; it can be a key."""
        ...

    def launch(self, bucket: Bucket, items: Sequence[Any]) -> Any:
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
        texts: number of its prompts: a method may have several for each text.
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
            self.done(np.stack([z for z in self.vectors if z is not None]))

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
    item: Any


@dataclass(frozen=True, eq=False)
class _Launched:
    """A batch in flight."""

    bucket: Bucket
    texts: list[_Waiting]
    result: Any
    start: float


class Batcher:
    """The queue in front of the device. Start it with `start`; `close` lets it finish.

    One thread launches batches, another one waits for their results.

    Args:
        device: what computes.
        observe: function that gets an event (`launched`, `computed`, `dropped`), its bucket, and
            the number of texts or the seconds, for metrics.
    """

    def __init__(
        self, device: Device, observe: Callable[[str, Any, int | float], None] | None = None
    ):
        self._device = device
        self._observe = observe or (lambda event, bucket, value: None)
        self._waiting: dict[Bucket, deque[_Waiting]] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._launched = 0
        self._closing = False
        self._failure: Exception | None = None
        self._in_flight: deque[_Launched] = deque()
        self._results: SimpleQueue[_Launched | None] = SimpleQueue()
        self._usual_s: dict[Bucket, float] = {}
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), name=run.__name__, daemon=True)
            for run in (self._launch_batches, self._fetch_results)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, items: Sequence[Any]) -> None:
        """Queue the prompts of a job, in the form that the device takes.

        Raises: DeviceFailed after a thread has ended.
        """
        with self._changed:
            if self._failure is not None:
                raise DeviceFailed(str(self._failure))
            for index, item in enumerate(items):
                bucket = self._device.bucket(item)
                text = _Waiting(next(self._numbers), self._launched, job, index, item)
                self._waiting.setdefault(bucket, deque()).append(text)
            self._changed.notify_all()

    def overdue(self) -> float:
        """Return the seconds by which the oldest batch in flight is late; 0 where none is."""
        with self._changed:
            if not self._in_flight:
                return 0.0
            oldest = self._in_flight[0]
            allowed = 10 * self._usual_s.get(oldest.bucket, 60.0) + GRACE_S
        return max(0.0, time.perf_counter() - oldest.start - allowed)

    @property
    def failure(self) -> Exception | None:
        """The error that ended a thread."""
        return self._failure

    def close(self) -> None:
        """Compute what was submitted, then end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:
            self._fail(error)

    def _launch_batches(self) -> None:
        """Launch batch after batch, until the batcher is closed and nothing waits."""
        while (chosen := self._next()) is not None:
            bucket, texts = chosen
            now = time.perf_counter()
            for text in texts:
                text.job.launched = text.job.launched or now
            try:
                result = self._device.launch(bucket, [text.item for text in texts])
            except Exception as error:
                _fail_batch(texts, error)
                continue
            launched = _Launched(bucket, texts, result, now)
            with self._changed:
                self._in_flight.append(launched)
            self._results.put(launched)
            self._observe("launched", bucket, len(texts))
        self._results.put(None)

    def _next(self) -> tuple[Bucket, list[_Waiting]] | None:
        """Wait for a batch to launch; None at the end."""
        with self._changed:
            while (chosen := self._choose()) is None:
                if self._failure or (self._closing and not self._waiting):
                    return None
                self._changed.wait()
        return chosen

    def _fetch_results(self) -> None:
        """Wait for result after result and hand the vectors out."""
        while (launched := self._results.get()) is not None:
            try:
                z_nD = self._device.fetch(launched.result)
            except Exception as error:
                _fail_batch(launched.texts, error)
            else:
                for text, vector in zip(launched.texts, z_nD, strict=True):
                    text.job.put(text.index, vector)
            seconds = time.perf_counter() - launched.start
            with self._changed:
                self._in_flight.popleft()
                self._usual_s[launched.bucket] = seconds
                self._changed.notify_all()
            self._observe("computed", launched.bucket, seconds)

    def _choose(self) -> tuple[Bucket, list[_Waiting]] | None:
        """Take the next batch out of its bucket; None where it is better to wait."""
        for bucket in list(self._waiting):
            self._drop_cancelled(bucket)
        if len(self._in_flight) >= IN_FLIGHT or not self._waiting:
            return None
        by_age = sorted(self._waiting, key=lambda bucket: self._waiting[bucket][0].number)
        oldest = by_age[0]
        starved = self._launched - self._waiting[oldest][0].batches >= PATIENCE
        full = [b for b in by_age if len(self._waiting[b]) >= self._rows(b)]
        if starved or (not full and not self._in_flight):
            waiting = {bucket: len(texts) for bucket, texts in self._waiting.items()}
            return self._take(*sharing(oldest, waiting, self._device))
        return self._take(full[:1], self._rows(full[0])) if full else None

    def _drop_cancelled(self, bucket: Bucket) -> None:
        kept = deque(text for text in self._waiting[bucket] if not text.job.cancelled)
        dropped = len(self._waiting[bucket]) - len(kept)
        if dropped:
            self._observe("dropped", bucket, dropped)
        if kept:
            self._waiting[bucket] = kept
        else:
            del self._waiting[bucket]

    def _rows(self, bucket: Bucket) -> int:
        """Return the rows of a full batch."""
        return self._device.sizes(bucket)[-1]

    def _take(self, buckets: Sequence[Bucket], rows: int) -> tuple[Bucket, list[_Waiting]]:
        """Take the oldest texts of some buckets for a batch of the last of them."""
        waiting = (text for bucket in buckets for text in self._waiting[bucket])
        texts = sorted(waiting, key=lambda text: text.number)[:rows]
        taken = {text.number for text in texts}
        for bucket in buckets:
            rest = deque(text for text in self._waiting.pop(bucket) if text.number not in taken)
            if rest:
                self._waiting[bucket] = rest
        self._launched += 1
        return buckets[-1], texts

    def _fail(self, error: Exception) -> None:
        """Fail everything that waits: a thread has ended."""
        with self._changed:
            self._failure = error
            waiting = [text for queue in self._waiting.values() for text in queue]
            waiting += [text for launched in self._in_flight for text in launched.texts]
            self._waiting.clear()
            self._changed.notify_all()
        self._results.put(None)
        _fail_batch(waiting, DeviceFailed(str(error)))


def _fail_batch(texts: Sequence[_Waiting], error: Exception) -> None:
    for text in texts:
        text.job.fail(error)
