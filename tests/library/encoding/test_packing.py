"""Laws of packing: every sentence once, no row too full, vectors those of the sentence alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.encoding import packing
from prompteol_jax.encoding.runners import encode, prefill
from prompteol_jax.models.decoder import Rows


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40), st.integers(1, 5))
def test_every_sentence_is_in_one_row_and_no_row_is_too_full(lengths, capacity, most):
    rows = packing.bins(lengths, capacity, most)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in row) <= capacity for row in rows)
    assert all(1 <= len(row) <= most for row in rows)


def test_a_sentence_goes_to_the_fullest_row_that_has_room():
    assert packing.bins([6, 5, 4, 3, 2], capacity=10, most=9) == [[0, 2], [1, 3, 4]]
    assert packing.bins([7, 6, 3], capacity=10, most=9) == [[0, 2], [1]]
    assert packing.bins([7, 6, 3], capacity=10, most=1) == [[0], [1], [2]]


def test_refuses_a_sentence_longer_than_a_row():
    with pytest.raises(ValueError, match="a sentence of 11 tokens does not fit a row of 10"):
        packing.bins([3, 11], capacity=10, most=2)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.sampled_from([1, 4, 8]))
def test_packed_rows_hold_every_sentence_where_they_say(lengths, multiple):
    ids = [np.arange(n, dtype=np.int32) + 100 * i for i, n in enumerate(lengths, 1)]
    (ids_BT, last_BS, start_BT), position_n = packing.pack(ids, 12, 3, multiple)
    assert len(ids_BT) % multiple == 0
    for sentence, position in zip(ids, position_n, strict=True):
        row, slot = divmod(int(position), 3)
        last = last_BS[row, slot]
        first = start_BT[row, last]
        np.testing.assert_array_equal(ids_BT[row, first : last + 1], sentence)
        assert (start_BT[row, first : last + 1] == first).all()
    assert (start_BT <= np.arange(12)).all()


@pytest.mark.first("opt-True")
@pytest.mark.fast("opt-False", "opt-True")
@pytest.mark.parametrize(
    ("name", "shared"), [("opt", False), ("opt", True), ("opt-350m", True), ("llama", True)]
)
def test_a_packed_sentence_has_the_vector_of_the_sentence_alone(name, shared, decoders):
    _, model = decoders(name)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 60, n).astype(np.int32) for n in (3, 7, 1, 10, 5, 4, 9, 2)]
    cache = prefill(model, np.arange(5, dtype=np.int32)) if shared else None
    alone = Rows(np.zeros((8, 10), np.int32), np.array([[len(i) - 1] for i in ids], np.int32))
    for row, sentence in zip(alone.ids_BT, ids, strict=True):
        row[: len(sentence)] = sentence
    packed = packing.pack(ids, 12, 3, 2)
    assert len(packed.rows.ids_BT) < len(ids)
    z_nD = np.asarray(encode(model, packed.rows, cache))
    z_nD = z_nD.reshape(-1, z_nD.shape[-1])[packed.position_n]
    np.testing.assert_allclose(z_nD, encode(model, alone, cache)[:, 0], atol=2e-5)
