"""A few texts in a small batch get the bits of a full one, or they stay in a full one."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.encoding.batching import Sentence, fill_batch
from prompteol_jax.encoding.buckets import Buckets
from prompteol_jax.encoding.small_batches import PATIENCE, SmallBatches, candidates

TEXTS = ["A man is playing a guitar.", "the cat sleeps", "", "a dog runs after one red ball " * 3]
BUCKETS = Buckets((8, 16), (32, 8))


def batch_of(n, bucket=0):
    sentences = [Sentence(i, np.arange(1, 5, dtype=np.int32) + i, True) for i in range(n)]
    return fill_batch(BUCKETS, bucket, sentences)


def honest(batch):
    """A vector is the sum of its row."""
    return jnp.asarray(batch.rows.ids_BT.sum(axis=1, dtype=np.float32)[:, None, None])


def by_shape(batch):
    """A device whose last bit depends on the number of rows."""
    return honest(batch) + len(batch.rows.ids_BT)


@pytest.mark.parametrize(
    ("rows", "multiple", "expected"),
    [
        (32, 1, [2, 4, 8, 16]),
        (39, 1, [2, 4, 8, 16]),
        (300, 1, [2, 4, 8, 16, 64]),
        (16, 2, [4, 8]),
        (3, 1, []),
        (1, 1, []),
    ],
)
def test_smaller_shapes_save_at_least_half(rows, multiple, expected):
    assert list(candidates(rows, multiple)) == expected


@pytest.mark.parametrize(("n", "rows"), [(1, 2), (2, 2), (3, 4), (9, 16), (16, 16), (17, 32)])
def test_the_smallest_shape_that_holds_the_sentences_is_used_after_a_proof(n, rows):
    small, batch = SmallBatches(), batch_of(n)
    for _ in range(PATIENCE):
        assert small.shrink(batch, honest, 1) is batch
    shrunk = small.shrink(batch, honest, 1)
    assert len(shrunk.rows.ids_BT) == rows
    assert shrunk.members == batch.members
    np.testing.assert_array_equal(
        np.asarray(honest(shrunk)).reshape(-1)[shrunk.positions],
        np.asarray(honest(batch)).reshape(-1)[batch.positions],
    )


def test_a_shape_with_other_bits_is_tried_once_and_never_used():
    small, batch, launched = SmallBatches(), batch_of(1), []

    def launch(batch):
        launched.append(len(batch.rows.ids_BT))
        return by_shape(batch)

    for _ in range(20):
        assert small.shrink(batch, launch, 1, patience=0) is batch
    assert small.equal == {(batch.shape, rows): False for rows in (2, 4, 8, 16)}
    assert sorted(launched) == [2, 4, 8, 16, *[32] * 4]


# On a CPU the proof succeeds, which the number of padded tokens shows.
@pytest.mark.first("2x1-float32-mean")
@pytest.mark.parametrize(
    ("mesh", "dtype", "pooling"),
    [("1x1", "bfloat16", "last"), ("2x1", "float32", "mean")],
)
def test_a_text_sent_often_costs_few_tokens_and_keeps_its_bits(coarse, mesh, dtype, pooling):
    embedder = Embedder.from_pretrained("tiny", mesh=mesh, dtype=dtype, pooling=pooling)
    first = embedder.encode(TEXTS)
    full = embedder.report.padded_tokens
    for _ in range(PATIENCE + 1):
        z_D = embedder.encode(TEXTS[:1])[0]
        assert z_D.tobytes() == first[0].tobytes()
    assert embedder.report.padded_tokens <= full / 4
    assert embedder.encode(TEXTS[1:2])[0].tobytes() == first[1].tobytes()
    assert all(embedder.pipeline.seen.small.equal.values())
    assert embedder.encode(TEXTS * 30).tobytes() == np.tile(first, (30, 1)).tobytes()


def test_one_text_of_float32_costs_few_tokens_and_keeps_its_bits():
    embedder = Embedder.from_pretrained("tiny", dtype="float32")
    vectors = [embedder.encode(TEXTS[:1]).tobytes() for _ in range(PATIENCE + 2)]
    assert set(vectors) == {vectors[0]}
    assert embedder.report.padded_tokens <= embedder.pipeline.tokens / 4
