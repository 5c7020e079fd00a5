"""Laws of streams: batches of two threads run together, and no vector depends on it."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.encoding.streams import Streams
from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import select


def test_two_threads_start_batches_in_turn_with_the_mesh_set():
    mesh = make_mesh((1, 1))

    def launch(batch):
        return batch, threading.current_thread().name, jax.sharding.get_abstract_mesh().shape

    with Streams(mesh) as streams:
        found = [streams.start(launch, batch) for batch in range(4)]
    assert [batch for batch, _, _ in found] == [0, 1, 2, 3]
    names = [name for _, name, _ in found]
    assert names[0] == names[2] != names[1] == names[3]
    assert all(shape == mesh.shape for _, _, shape in found)


def test_simulated_devices_have_one_stream_in_the_callers_thread():
    with Streams(make_mesh((2, 1))) as streams:
        assert streams.start(lambda batch: threading.current_thread(), 0) is threading.main_thread()


def test_what_a_batch_raises_reaches_the_caller():
    with Streams(make_mesh((1, 1))) as streams, pytest.raises(ZeroDivisionError):
        streams.start(lambda batch: 1 // batch, 0)


def test_the_same_bits_with_one_stream_and_with_two(monkeypatch):
    embedder = Embedder.from_pretrained("tiny", dtype="float32")
    texts = [f"sentence {i} of {'many ' * (i % 40)}words" for i in range(200)]
    two = embedder.encode(texts)
    monkeypatch.setattr(select, "streams", lambda mesh: 1)
    np.testing.assert_array_equal(two, embedder.encode(texts))
