"""A worker writes the file that a plain run writes, and tells errors in its receipt."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prompteol_jax.cli.encode import EncodeOptions
from prompteol_jax.pretrained import provenance
from prompteol_jax.scale.worker import Receipt, ShardWorker
from prompteol_jax.storage import atomic, corpus


@pytest.fixture
def options(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sleeps\n\na dog runs\n")
    (tmp_path / "out").mkdir()
    where = dict(input=tmp_path / "a.txt", output=tmp_path / "out")
    return EncodeOptions(model="tiny", dtype="float32", normalize=True, shard_rows=2, **where)


def asked(worker, number, chunk):
    answer = worker({"shard": np.array([json.dumps([number, *chunk])], object)})
    return Receipt(*json.loads(answer["receipt"][0]))


def test_a_shard_is_written_whole_with_a_receipt(options, embedders, monkeypatch):
    monkeypatch.setattr(EncodeOptions, "load", lambda self, dtype: embedders("tiny"))
    started = []
    worker = ShardWorker(options, "cpu", provenance.versions(), started.append)
    chunks = corpus.open_corpus(options.input).survey(2)
    receipt = asked(worker, 0, chunks[0])
    path = options.output / "shard-00000.npy"
    expected = embedders("tiny").encode(["the cat sleeps", ""], normalize=True)
    np.testing.assert_array_equal(np.load(path), expected)
    assert (receipt.sha256, receipt.width, receipt.error) == (atomic.sha256(path), 128, "")
    assert receipt.device.startswith("cpu ")
    changed = asked(worker, 1, chunks[1]._replace(sha256="0"))
    assert "has changed while it was encoded" in changed.error
    assert not (options.output / "shard-00001.npy").exists()
    assert started == [0, 1]


@pytest.mark.parametrize(
    ("platform", "versions", "message"),
    [
        ("tpu", {}, "computes on cpu, not on --device tpu; is JAX installed for it"),
        ("cpu", {"jax": "0.1"}, ", not 0.1 as the driver; give all nodes one image"),
    ],
)
def test_a_worker_of_another_kind_says_so(
    options, embedders, monkeypatch, platform, versions, message
):
    monkeypatch.setattr(EncodeOptions, "load", lambda self, dtype: embedders("tiny"))
    worker = ShardWorker(options, platform, versions, lambda number: None)
    assert message in asked(worker, 0, corpus.Chunk(1, "")).error
