"""Laws of slabs and meshes: every sentence is in one slab, the mesh changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.encoding.batching import Packer, Sorter
from prompteol_jax.encoding.buckets import Ladder


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=80))
def test_every_sentence_is_in_one_slab_of_its_shape(sentences):
    ladder = Ladder((8, 16, 30), (4, 2, 2))
    sorter = Sorter(ladder)
    ids = [np.arange(1, n + 1, dtype=np.int32) + i for i, (n, _) in enumerate(sentences)]
    slabs = [
        slab for i, (_, shared) in enumerate(sentences) for slab in sorter.add(i, ids[i], shared)
    ]
    full = len(slabs)
    slabs += list(sorter.rest())
    assert sorted(m for slab in slabs for m in slab.members) == list(range(len(sentences)))
    for number, slab in enumerate(slabs):
        ids_BT, last_BS, start_BT = slab.rows
        T = ids_BT.shape[1]
        assert ids_BT.shape == (ladder.rows[ladder.lengths.index(T)], T)
        assert number >= full or len(slab.members) == len(ids_BT)
        assert start_BT is None
        assert slab.shape == (*ids_BT.shape, 1, slab.shared)
        for row, member in enumerate(slab.members):
            n, shared = sentences[member]
            assert (slab.shared, ladder.lengths[ladder.rung(n, shared)]) == (shared, T)
            assert last_BS[row, 0] == n - 1
            np.testing.assert_array_equal(ids_BT[row, :n], ids[member])
    assert list(sorter.rest()) == []


@given(st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=80))
def test_a_packed_sentence_is_found_where_its_slab_says(sentences):
    packer = Packer(Ladder((64, 90), (8, 2)), 256, 2)
    ids = [np.arange(1, n + 1, dtype=np.int32) + i for i, (n, _) in enumerate(sentences)]
    slabs = [s for i, (_, shared) in enumerate(sentences) for s in packer.add(i, ids[i], shared)]
    slabs += list(packer.rest())
    assert sorted(m for slab in slabs for m in slab.members) == list(range(len(sentences)))
    for slab in slabs:
        ids_BT, last_BS, start_BT = slab.rows
        assert ids_BT.shape in ((2, 128), (2, 90))
        for member, place in zip(slab.members, slab.places, strict=True):
            row, slot = divmod(int(place), last_BS.shape[1])
            end = last_BS[row, slot] + 1
            start = 0 if start_BT is None else start_BT[row, end - 1]
            np.testing.assert_array_equal(ids_BT[row, start:end], ids[member])
            assert slab.shared == sentences[member][1]
    assert list(packer.rest()) == []


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("mesh", ["8x1", "4x2", "2x4"])
@pytest.mark.parametrize(
    "name",
    [
        "opt-tiny",
        "opt-350m-tiny",
        "llama-gqa-tiny",  # 2 key/value heads on 4 devices
        "tinystories-656k",
        pytest.param("opt-125m", marks=pytest.mark.slow),
    ],
)
def test_vectors_are_the_same_on_every_mesh(name, mesh, embedders, texts):
    spread, alone = embedders(name, mesh), embedders(name)
    vectors = spread.encode(texts)
    assert np.abs(vectors - alone.encode(texts)).max() <= 1e-5
    query = spread.decoder.last.q.w[...]
    assert query.sharding.num_devices == 8
    model = int(mesh[-1])
    assert query.addressable_shards[0].data.shape[0] == query.shape[0] // model


def test_the_public_encode_is_the_function_whatever_was_imported_before():
    import prompteol_jax
    from prompteol_jax import embedder
    from prompteol_jax.encoding import batching

    assert embedder and prompteol_jax.encode is batching.encode
