"""Texts of many requests share fixed batches; none is lost, starved, or computed for nobody."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

from prompteol_jax.serve.batcher import PATIENCE, Batcher, DeviceFailed, Job

pytestmark = pytest.mark.unit

ROWS = {1: 4, 2: 2}


class Device:
    """A device of two buckets; a vector is its prompt's sum, ready when the gate opens."""

    def __init__(self, held=False, joins=False):
        self.batches, self.gate = [], threading.Semaphore(0 if held else 10**6)
        self.joins = joins
        self.error = None

    def bucket(self, item):
        ids, shared = item
        return (1 if len(ids) <= 4 else 2), shared

    def sizes(self, bucket):
        return list(range(1, ROWS[bucket[0]] + 1))

    def holders(self, bucket):
        length, shared = bucket
        return [(n, shared) for n in ROWS if n == length or (self.joins and n > length)]

    def cost(self, bucket, rows):
        return 10.0 + rows * bucket[0]

    def launch(self, bucket, prompts):
        assert 1 <= len(prompts) <= ROWS[bucket[0]]
        self.batches.append((bucket, [int(ids.sum()) for ids, _ in prompts]))
        if self.error:
            error, self.error = self.error, None
            raise error
        return prompts

    def fetch(self, launched):
        assert self.gate.acquire(timeout=20)
        return np.array([[ids.sum()] for ids, _ in launched], np.float32)


@pytest.fixture
def start():
    running = []

    def begin(device, **how):
        batcher = Batcher(device, **how)
        batcher.start()
        running.append((device, batcher))
        return batcher

    yield begin
    for device, batcher in running:
        device.gate.release(1000)
        batcher.close()


def submit(batcher, *sums, long=False, shared=True):
    """Send prompts that sum to these numbers, and the queue that their result comes to."""
    done = queue.Queue()
    job = Job(len(sums), done.put)
    batcher.submit(job, [(np.array([n, *[0] * (9 if long else 0)]), shared) for n in sums])
    return job, done


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen within 10 s")


def test_every_request_gets_its_own_vectors_in_order(start):
    device = Device()
    batcher = start(device)
    jobs = [submit(batcher, *range(10 * n, 10 * n + n % 7 + 1), long=n % 2 == 0) for n in range(40)]
    for n, (_, done) in enumerate(jobs):
        expected = [[float(i)] for i in range(10 * n, 10 * n + n % 7 + 1)]
        np.testing.assert_array_equal(done.get(timeout=20), expected)


def test_an_idle_device_starts_at_once_and_a_busy_one_waits_for_full_batches(start):
    device = Device(held=True)
    batcher = start(device)
    first = submit(batcher, 1)
    until(lambda: device.batches == [((1, True), [1])])
    later = [submit(batcher, n) for n in range(2, 6)]
    until(lambda: len(device.batches) == 2)
    assert device.batches[1] == ((1, True), [2, 3, 4, 5])
    device.gate.release(2)
    assert first[1].get(timeout=20)[0, 0] == 1
    assert [done.get(timeout=20)[0, 0] for _, done in later] == [2, 3, 4, 5]


def test_prompts_with_and_without_the_prefix_never_share_a_batch(start):
    device = Device(held=True)
    batcher = start(device)
    submit(batcher, 1)
    submit(batcher, 2, shared=False)
    submit(batcher, 3)
    device.gate.release(10)
    until(lambda: sum(len(rows) for _, rows in device.batches) == 3)
    assert all(len({n == 2 for n in rows}) == 1 for _, rows in device.batches)


def test_buckets_share_a_batch_where_their_bits_are_the_same(start):
    for joins in (True, False):
        device = Device(held=True, joins=joins)
        batcher = start(device)
        submit(batcher, 0)
        until(lambda device=device: len(device.batches) == 1)
        short, long = submit(batcher, 1), submit(batcher, 2, long=True)
        device.gate.release(10)
        assert short[1].get(timeout=20)[0, 0] == 1
        assert long[1].get(timeout=20)[0, 0] == 2
        apart = [((1, True), [1]), ((2, True), [2])]
        assert device.batches[1:] == ([((2, True), [1, 2])] if joins else apart)


def test_a_rare_length_is_not_starved_by_full_batches(start):
    device = Device(held=True)
    batcher = start(device)
    submit(batcher, 0)
    until(lambda: len(device.batches) == 1)
    _, rare = submit(batcher, 99, long=True)
    common = [submit(batcher, *range(4)) for _ in range(3 * PATIENCE)]
    for _ in range(4 * PATIENCE):
        device.gate.release()
    assert rare.get(timeout=20)[0, 0] == 99
    position = next(n for n, (_, rows) in enumerate(device.batches) if rows == [99])
    assert position <= PATIENCE + 2
    for _, done in common:
        done.get(timeout=20)


def test_texts_of_a_client_that_left_are_never_computed(start):
    device, dropped = Device(held=True), []
    batcher = start(device, observe=lambda e, b, v: dropped.append(v) if e == "dropped" else None)
    submit(batcher, 1)
    until(lambda: len(device.batches) == 1)
    job, _ = submit(batcher, 7, 8, 9)
    job.cancelled = True
    _, after = submit(batcher, 5)
    device.gate.release(10)
    assert after.get(timeout=20)[0, 0] == 5
    assert not {7, 8, 9} & {n for _, rows in device.batches for n in rows}
    assert sum(dropped) == 3


def test_a_batch_that_fails_fails_its_requests_and_the_next_is_computed(start):
    device = Device()
    device.error = RuntimeError("out of memory")
    batcher = start(device)
    _, done = submit(batcher, 1)
    assert isinstance(done.get(timeout=20), RuntimeError)
    _, done = submit(batcher, 2)
    assert done.get(timeout=20)[0, 0] == 2
    assert batcher.failure is None


def test_a_thread_that_ends_fails_all_that_waits_and_all_that_comes(start):
    device = Device(held=True)
    batcher = start(device)
    _, first = submit(batcher, 1)
    until(lambda: len(device.batches) == 1)
    device.sizes = None  # the thread's own code raises
    _, second = submit(batcher, 2)
    assert isinstance(second.get(timeout=20), DeviceFailed)
    until(lambda: batcher.failure is not None)
    with pytest.raises(DeviceFailed):
        submit(batcher, 3)
    assert isinstance(first.get(timeout=20), DeviceFailed)


def test_closing_computes_what_was_submitted(start):
    device = Device()
    batcher = start(device)
    jobs = [submit(batcher, n) for n in range(20)]
    batcher.close()
    assert [int(done.get_nowait()[0, 0]) for _, done in jobs] == list(range(20))


def test_a_batch_in_flight_for_too_long_is_overdue(start, monkeypatch):
    device = Device(held=True)
    batcher = start(device)
    assert batcher.overdue() == 0
    submit(batcher, 1)
    until(lambda: len(device.batches) == 1)
    assert batcher.overdue() == 0
    later = time.perf_counter() + 10_000
    monkeypatch.setattr(time, "perf_counter", lambda: later)
    assert batcher.overdue() > 0
