"""Laws of batches and meshes: every sentence is in one batch, the mesh changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.encoding.batching import Packer, Sentence, Sorter
from prompteol_jax.encoding.buckets import Buckets


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=80))
def test_every_sentence_is_in_one_batch_of_its_shape(sentences):
    buckets = Buckets((8, 16, 30), (4, 2, 2))
    sorter = Sorter(buckets)
    ids = [np.arange(1, n + 1, dtype=np.int32) + i for i, (n, _) in enumerate(sentences)]
    batches = [
        batch
        for i, (_, shared) in enumerate(sentences)
        for batch in sorter.add(Sentence(i, ids[i], shared))
    ]
    full = len(batches)
    batches += list(sorter.rest())
    assert sorted(m for batch in batches for m in batch.members) == list(range(len(sentences)))
    for number, batch in enumerate(batches):
        ids_BT, last_BS, start_BT = batch.rows
        T = ids_BT.shape[1]
        assert ids_BT.shape == (buckets.rows[buckets.lengths.index(T)], T)
        assert number >= full or len(batch.members) == len(ids_BT)
        assert start_BT is None
        assert batch.shape == (*ids_BT.shape, 1, batch.shared)
        for row, member in enumerate(batch.members):
            n, shared = sentences[member]
            assert (batch.shared, buckets.lengths[buckets.find(n, shared)]) == (shared, T)
            assert last_BS[row, 0] == n - 1
            np.testing.assert_array_equal(ids_BT[row, :n], ids[member])
    assert list(sorter.rest()) == []


@given(st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=80))
def test_a_packed_sentence_is_found_where_its_batch_says(sentences):
    packer = Packer(Buckets((64, 90), (8, 2)), 256, 2)
    ids = [np.arange(1, n + 1, dtype=np.int32) + i for i, (n, _) in enumerate(sentences)]
    batches = [
        s
        for i, (_, shared) in enumerate(sentences)
        for s in packer.add(Sentence(i, ids[i], shared))
    ]
    batches += list(packer.rest())
    assert sorted(m for batch in batches for m in batch.members) == list(range(len(sentences)))
    for batch in batches:
        ids_BT, last_BS, start_BT = batch.rows
        assert ids_BT.shape in ((2, 128), (2, 90))
        for member, position in zip(batch.members, batch.positions, strict=True):
            row, slot = divmod(int(position), last_BS.shape[1])
            end = last_BS[row, slot] + 1
            start = 0 if start_BT is None else start_BT[row, end - 1]
            np.testing.assert_array_equal(ids_BT[row, start:end], ids[member])
            assert batch.shared == sentences[member][1]
    assert list(packer.rest()) == []


@pytest.mark.first("llama-gqa-tiny-4x2")
@pytest.mark.fast("llama-gqa-tiny-4x2", "opt-350m-tiny-2x4")
@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("mesh", ["8x1", "4x2", "2x4"])
@pytest.mark.parametrize(
    "name",
    [
        "opt-tiny",
        "opt-350m-tiny",
        "llama-gqa-tiny",  # 2 key/value heads on 4 devices
        "qwen3-tiny",  # one key/value head
        "gemma3-tiny",  # windows and ropes by layer
        "olmo3-tiny",  # norms over all heads, which several devices hold
        "phi3-tiny",  # fused in the file
        "tinystories-656k",
        "opt-125m",
    ],
)
def test_vectors_are_the_same_on_every_mesh(name, mesh, embedders, texts):
    sharded, alone = embedders(name, mesh), embedders(name)
    vectors = sharded.encode(texts)
    assert np.abs(vectors - alone.encode(texts)).max() <= 1e-5
    query = sharded.decoder.last.attention.q.w[...]
    assert query.sharding.num_devices == 8
    model = int(mesh[-1])
    assert query.addressable_shards[0].data.shape[0] == query.shape[0] // model


def test_the_public_encode_is_the_function_whatever_was_imported_before():
    import prompteol_jax
    from prompteol_jax import embedder
    from prompteol_jax.encoding import runners

    assert embedder and prompteol_jax.encode is runners.encode
