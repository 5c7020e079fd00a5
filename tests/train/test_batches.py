"""Laws of assembly: every sentence is in the packed rows once, and its place is its last token."""

import numpy as np
import pytest

from prompteol_jax import axes
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.template import PROMPTEOL
from prompteol_jax.tokens import Prompt
from train.batches import Assembler
from train.data import Triplet
from train.synthetic import synthetic_triplets

LONG = "a man is reading a newspaper on the street " * 20
ODD = [
    Triplet("A man runs.", "", "🙂 ()"),
    Triplet(LONG, '"Quoted"', " led by a space"),
    Triplet("(", "\n", "the end"),
    Triplet("A man runs.", "A man runs.", "Nobody runs."),
]
BATCHES = {
    "synthetic": synthetic_triplets(0, 40),
    "odd": ODD,
    "pairs": [Triplet(t.sent0, t.sent1, None) for t in synthetic_triplets(1, 20)],
}


@pytest.fixture(scope="module")
def prompt():
    return Prompt(PROMPTEOL, tiny_tokenizer(), max_tokens=512)


def assembler(prompt, mesh="1x1", cut=32, chunks=1):
    return Assembler(prompt, axes.make_mesh(axes.parse_mesh(mesh)), cut, chunks)


def sentences_of(batch, prefix_C):
    """The ids of every sentence of a batch, in the order of triplets and roles."""
    ids_BT, last_BS, start_BT = (np.asarray(x) for x in batch.rows)
    S = last_BS.shape[1]
    found = []
    for place in np.asarray(batch.place_B3).ravel():
        row, slot = divmod(int(place), S)
        last = last_BS[row, slot]
        first = start_BT[row, last]
        assert (start_BT[row, first : last + 1] == first).all()
        found.append([*prefix_C, *ids_BT[row, first : last + 1]])
    return found


def expected_ids(prompt, triplets, cut):
    texts = [text for t in triplets for text in t if text is not None]
    filled = [PROMPTEOL.fill(text) for text in prompt.tokenizer.cut(texts, cut)]
    return [ids.tolist() for ids in prompt.tokenizer.ids(filled)]


@pytest.mark.parametrize("cut", [1, 5, 32, 200])
@pytest.mark.parametrize("name", BATCHES)
def test_every_sentence_is_in_the_rows_once_and_found_by_its_place(name, cut, prompt):
    triplets = BATCHES[name]
    batch, prefix_C, tokens = assembler(prompt, cut=cut)(triplets)
    expected = expected_ids(prompt, triplets, cut)
    assert sentences_of(batch, prefix_C) == expected
    places = np.asarray(batch.place_B3)
    assert places.shape == (len(triplets), 2 if name == "pairs" else 3)
    assert len(set(places.ravel().tolist())) == places.size
    assert tokens == sum(len(ids) - len(prefix_C) for ids in expected) + len(prefix_C)


def test_a_batch_shares_the_prefix(prompt):
    batch, prefix_C, _ = assembler(prompt)(BATCHES["synthetic"])
    np.testing.assert_array_equal(prefix_C, prompt.prefix_C)
    assert len(prefix_C) > 3
    assert np.asarray(batch.rows.ids_BT).shape[1] == 64


def test_a_batch_with_a_sentence_that_does_not_share_the_prefix_goes_whole(prompt):
    class Wayward(Prompt):
        """Takes one sentence for one that begins otherwise."""

        def __call__(self, texts):
            made = super().__call__(texts)
            made.ids[4] = np.concatenate([self.prefix_C, made.ids[4]])
            made.shared[4] = False
            return made

    wayward = Wayward(PROMPTEOL, prompt.tokenizer, max_tokens=512)
    triplets = BATCHES["synthetic"]
    batch, prefix_C, tokens = assembler(wayward)(triplets)
    assert len(prefix_C) == 0
    expected = expected_ids(prompt, triplets, 32)
    assert sentences_of(batch, prefix_C) == expected
    assert tokens == sum(map(len, expected))


@pytest.mark.parametrize(("mesh", "chunks"), [("1x1", 3), ("8x1", 1), ("4x2", 4), ("2x4", 5)])
def test_rows_share_out_evenly_over_devices_and_chunks(mesh, chunks, prompt):
    made = assembler(prompt, mesh, chunks=chunks)
    batch, prefix_C, _ = made(BATCHES["synthetic"])
    rows = batch.rows.ids_BT
    data = made.mesh.shape["data"]
    assert len(rows) % (data * chunks) == 0
    assert len(rows.sharding.shard_shape(rows.shape)) == 2
    assert rows.sharding.shard_shape(rows.shape)[0] == len(rows) // data
    assert sentences_of(batch, prefix_C) == expected_ids(prompt, BATCHES["synthetic"], 32)


def test_packing_is_the_same_on_every_mesh(prompt):
    """Dropout keys belong to rows: a sentence must not change its row with the mesh."""
    triplets = BATCHES["synthetic"]
    places = [
        np.asarray(assembler(prompt, mesh, chunks=chunks)(triplets)[0].place_B3)
        for mesh, chunks in (("1x1", 1), ("8x1", 1), ("2x4", 5))
    ]
    np.testing.assert_array_equal(places[0], places[1])
    np.testing.assert_array_equal(places[0], places[2])


def test_a_sentence_longer_than_a_row_makes_rows_longer(prompt):
    batch, prefix_C, _ = assembler(prompt, cut=200)(ODD)
    longest = max(map(len, expected_ids(prompt, ODD, 200))) - len(prefix_C)
    assert longest > 64
    assert longest <= batch.rows.ids_BT.shape[1] < longest + 16
