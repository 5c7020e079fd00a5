"""Laws of assembly: every sentence is in the packed rows once, and its place is its last token."""

import jax
import numpy as np
import pytest

from prompteol_jax.distributed import Channel, Share
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import PROMPTEOL
from prompteol_jax.text.tokenizer import load_tokenizer
from train.data.collate import Collator, balanced, rows_of_shard
from train.data.synthetic import synthetic_triplets
from train.data.triplets import Triplet, read_triplets

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


@pytest.fixture(scope="module")
def opt_prompt(data):
    tokenizer = load_tokenizer(data / "weights" / "opt-tokenizer", vocab_size=50272)
    return Prompt(PROMPTEOL, tokenizer, max_tokens=2048)


def assembler(prompt, mesh="1x1", cut=32, chunks=1):
    share = Share.of(make_mesh(parse_mesh(mesh)))
    return Collator(prompt, share, Channel("batch"), cut, chunks)


def sentences_of(batch, prefix_C, shards=1):
    """The ids of every sentence of a batch, in the order of triplets as read, and roles."""
    ids_BT, last_BS, start_BT = (np.asarray(x) for x in batch.rows)
    sentence_BT = np.asarray(batch.sentence_BT)
    S, places, numbers = last_BS.shape[1], np.asarray(batch.place_B3), np.asarray(batch.number_B)
    assert sorted(numbers.tolist()) == [*range(len(places))]
    found = []
    for n in range(places.size):
        triplet, role = divmod(n, places.shape[1])
        at = numbers.tolist().index(triplet)
        row, slot = divmod(int(places[at, role]), S)
        row += at * shards // len(places) * (len(ids_BT) // shards)
        last = last_BS[row, slot]
        first = start_BT[row, last]
        assert (start_BT[row, first : last + 1] == first).all()
        assert (sentence_BT[row, first : last + 1] == n).all()
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
    batch, prefix_C, padding = assembler(prompt, cut=cut)(triplets)
    expected = expected_ids(prompt, triplets, cut)
    assert sentences_of(batch, prefix_C) == expected
    places = np.asarray(batch.place_B3)
    assert places.shape == (len(triplets), 2 if name == "pairs" else 3)
    assert len(set(places.ravel().tolist())) == places.size
    tokens = sum(len(ids) - len(prefix_C) for ids in expected)
    assert padding == pytest.approx(1 - tokens / batch.rows.ids_BT.size)


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
    batch, prefix_C, padding = assembler(wayward)(triplets)
    assert len(prefix_C) == 0
    expected = expected_ids(prompt, triplets, 32)
    assert sentences_of(batch, prefix_C) == expected
    assert padding == pytest.approx(1 - sum(map(len, expected)) / batch.rows.ids_BT.size)


@pytest.mark.parametrize(("mesh", "chunks"), [("1x1", 3), ("8x1", 1), ("4x2", 4), ("2x4", 5)])
def test_every_shard_packs_its_own_sentences_in_rows_for_every_chunk(mesh, chunks, prompt):
    made = assembler(prompt, mesh, chunks=chunks)
    batch, prefix_C, _ = made(BATCHES["synthetic"])
    rows, data = batch.rows.ids_BT, made.share.mesh.shape["data"]
    assert len(rows) % (data * chunks) == 0
    for array in jax.tree.leaves(batch):
        assert array.sharding.shard_shape(array.shape)[0] == len(array) // data
    expected = expected_ids(prompt, BATCHES["synthetic"], 32)
    assert sentences_of(batch, prefix_C, data) == expected


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("chunks", [1, 3, 8])
def test_few_numbers_of_rows_occur_and_little_is_added(chunks, shards):
    rounded = [rows_of_shard(rows, shards, chunks) for rows in range(1, 2000)]
    least = max(2 * chunks, 8 / shards)
    assert all(0 <= r - rows < max(least, rows / 8) for rows, r in enumerate(rounded, 1))
    assert all(r % chunks == 0 for r in rounded)
    assert len(set(rounded)) < 100


def test_padding_of_real_triplets_is_below_15_percent(data, opt_prompt):
    triplets = read_triplets(data / "nli" / "nli_triplets.csv").triplets
    rng = np.random.default_rng(0)
    for batch, mesh in ((64, "1x1"), (256, "1x1"), (256, "8x1")):
        drawn = [[triplets[i] for i in rng.permutation(len(triplets))[:batch]] for _ in range(4)]
        padding = np.mean([assembler(opt_prompt, mesh)(rows).padding for rows in drawn])
        assert padding < 0.1, (batch, mesh, padding)


def test_triplets_are_shared_out_whole_and_evenly():
    tokens = np.random.default_rng(0).integers(10, 120, 256).tolist()
    for shards in (1, 2, 8, 64):
        shared_out = balanced(tokens, shards)
        assert shared_out.shape == (shards, 256 // shards)
        assert sorted(shared_out.ravel().tolist()) == [*range(256)]
        assert (np.diff(shared_out) > 0).all()
        filled = [sum(tokens[n] for n in own) for own in shared_out]
        assert max(filled) <= 1.02 * np.mean(filled)


def test_a_sentence_longer_than_a_row_makes_rows_longer(prompt):
    batch, prefix_C, _ = assembler(prompt, cut=200)(ODD)
    longest = max(map(len, expected_ids(prompt, ODD, 200))) - len(prefix_C)
    assert longest > 64
    assert longest <= batch.rows.ids_BT.shape[1] < longest + 16
