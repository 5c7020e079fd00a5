"""Laws of slabs and meshes: a sentence alone decides its shape, the mesh changes nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.slabs import LENGTHS, Ladder, Sorter


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("longest", [40, 512, 2048, 4096, 131072])
def test_a_ladder_ends_at_the_longest_prompt_and_cuts_rows_to_the_mesh(longest, multiple):
    ladder = Ladder.fixed(longest, 4096, multiple)
    assert ladder.lengths[-1] == longest
    assert set(LENGTHS) >= set(ladder.lengths[:-1]) or longest > 2 * LENGTHS[-1]
    # Beyond the shortest rungs, no sentence is padded to more than about twice its length.
    assert all(b <= 2 * a for a, b in itertools.pairwise(ladder.lengths))
    assert list(ladder.lengths) == sorted(set(ladder.lengths))
    assert all(rows % multiple == 0 and rows > 0 for rows in ladder.rows)
    wide = [t for t, rows in zip(ladder.lengths, ladder.rows, strict=True) if rows > multiple]
    assert all(t * r <= 4096 for t, r in zip(ladder.lengths, ladder.rows, strict=True) if t in wide)


@pytest.mark.parametrize(
    ("length", "rung"), [(1, 8), (8, 8), (9, 12), (48, 48), (49, 100), (100, 100)]
)
def test_a_sentence_goes_to_the_shortest_rung_that_holds_it(length, rung):
    ladder = Ladder.fixed(100, 1024, 1)
    lengths = [n for n in ladder.lengths if n not in (64, 96)]
    ladder = Ladder(tuple(lengths), ladder.rows[: len(lengths)])
    assert ladder.lengths[ladder.rung(length)] == rung


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
        T = slab.ids_BT.shape[1]
        assert slab.ids_BT.shape == (ladder.rows[ladder.lengths.index(T)], T)
        assert number >= full or len(slab.members) == len(slab.ids_BT)
        for row, member in enumerate(slab.members):
            n, shared = sentences[member]
            assert (slab.shared, ladder.lengths[ladder.rung(n)]) == (shared, T)
            assert slab.last_BS[row, 0] == n - 1
            np.testing.assert_array_equal(slab.ids_BT[row, :n], ids[member])
    assert list(sorter.rest()) == []


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
    from prompteol_jax import embedder, slabs

    assert embedder and prompteol_jax.encode is slabs.encode
