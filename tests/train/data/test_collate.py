"""Laws of assembly: every sentence is in the packed rows once, and its place is its last token."""

import jax
import numpy as np
import pytest

from prompteol_jax.distributed import Share
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import PROMPTEOL, Template
from prompteol_jax.text.tokenizer import load_tokenizer
from train.data.batch_shape import choose_batch_shape
from train.data.batches import Batches
from train.data.collate import Collator
from train.data.sentences import Sentences, offsets_of
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


def columns_of(triplets):
    return ("sent0", "sent1", "hard_neg")[: 2 if triplets[0].hard_neg is None else 3]


def collator(prompt, triplets, mesh="1x1", cut=32, chunks=1, batch=None):
    """The collator of a run over these triplets, by default all of them in one step."""
    share = Share.of(make_mesh(parse_mesh(mesh)))
    sentences = Sentences(prompt, cut, columns_of(triplets))
    batches = Batches(triplets, batch=batch or len(triplets), epochs=1.0, seed=0)
    shape = choose_batch_shape(batches, sentences, share, chunks)
    return Collator(sentences, share, shape)


def collated(prompt, triplets, *mesh, **how):
    return collator(prompt, triplets, *mesh, **how)(triplets)


def sentences_of(batch, prefix_C, shards=1):
    """The ids of every sentence of a batch, in the order of triplets as read, and roles."""
    ids_BT, last_BS, start_BT = (np.asarray(x) for x in batch.rows)
    sentence_BT = np.asarray(batch.sentence_BT)
    S, places, numbers = last_BS.shape[1], np.asarray(batch.slot_B3), np.asarray(batch.number_B)
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
    batch, prefix_C, sentences, padding = collated(prompt, triplets, cut=cut)
    assert sentences == len(triplets) * len(columns_of(triplets))
    expected = expected_ids(prompt, triplets, cut)
    assert sentences_of(batch, prefix_C) == expected
    places = np.asarray(batch.slot_B3)
    assert places.shape == (len(triplets), 2 if name == "pairs" else 3)
    assert len(set(places.ravel().tolist())) == places.size
    tokens = sum(len(ids) - len(prefix_C) for ids in expected)
    assert padding == pytest.approx(1 - tokens / batch.rows.ids_BT.size)


def test_a_batch_shares_the_prefix(prompt):
    prefix_C = collated(prompt, BATCHES["synthetic"]).prefix_C
    np.testing.assert_array_equal(prefix_C, prompt.prefix_C)
    assert len(prefix_C) > 3


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
    batch, prefix_C, _, padding = collated(wayward, triplets)
    assert len(prefix_C) == 0
    expected = expected_ids(prompt, triplets, 32)
    assert sentences_of(batch, prefix_C) == expected
    assert padding == pytest.approx(1 - sum(map(len, expected)) / batch.rows.ids_BT.size)


@pytest.mark.parametrize(("mesh", "chunks"), [("1x1", 3), ("8x1", 1), ("4x2", 4), ("2x4", 5)])
def test_every_shard_packs_its_own_sentences_in_rows_for_every_chunk(mesh, chunks, prompt):
    batch, prefix_C, *_ = collated(prompt, BATCHES["synthetic"], mesh, chunks=chunks)
    rows, data = batch.rows.ids_BT, parse_mesh(mesh)[0]
    assert len(rows) % (data * chunks) == 0
    for array in jax.tree.leaves(batch):
        assert array.sharding.shard_shape(array.shape)[0] == len(array) // data
    expected = expected_ids(prompt, BATCHES["synthetic"], 32)
    assert sentences_of(batch, prefix_C, data) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "mesh", "most"), [(64, "4x1", 0.11), (256, "8x1", 0.075)])
def test_one_shape_holds_every_batch_of_real_triplets_with_little_padding(
    batch, mesh, most, data, opt_prompt
):
    """With a shape for each batch it was 0.08 and 0.07, and three or four programs."""
    triplets = read_triplets(data / "nli" / "nli_triplets.csv").triplets[:4096]
    collate = collator(opt_prompt, triplets, mesh, batch=batch)
    batches = Batches(triplets, batch=batch, epochs=1.0, seed=0)
    made = [collate(batches[step]) for step in range(len(batches))]
    shapes = {jax.tree.leaves(jax.tree.map(np.shape, one.batch)).__repr__() for one in made}
    assert len(shapes) == 1
    assert np.mean([one.padding for one in made]) < most


def test_a_sentence_longer_than_a_row_makes_rows_longer(prompt):
    batch, prefix_C, *_ = collated(prompt, ODD, cut=200)
    longest = max(map(len, expected_ids(prompt, ODD, 200))) - len(prefix_C)
    assert longest > 128
    assert longest <= batch.rows.ids_BT.shape[1] < longest + 16


SFP = Template("sfp", 'This sentence : "', '" means something, it can be summarized as')


def test_a_middle_position_is_that_of_the_suffixs_first_part(data):
    tokenizer = load_tokenizer(data / "weights" / "opt-tokenizer", vocab_size=50272)
    prompt = Prompt(SFP, tokenizer, max_tokens=2048)
    offsets = offsets_of(("middle", "last"), prompt)
    triplets = BATCHES["pairs"][:8]
    share = Share.of(make_mesh((1, 1)))
    sentences = Sentences(prompt, 32, ("sent0",))
    shape = choose_batch_shape(Batches(triplets, batch=8, epochs=1.0, seed=0), sentences, share, 1)
    batch, *_ = Collator(sentences, share, shape, ("text",), offsets)(triplets)
    ids_BT, last_BW, start_BT = map(np.asarray, batch.rows)
    W = last_BW.shape[1]
    assert np.asarray(batch.needs["text"]).shape == (8, 1, 2)
    for number, slots in zip(np.asarray(batch.number_B), np.asarray(batch.slot_B3), strict=True):
        read = []
        for slot in slots:
            row, at = slot // W, last_BW[slot // W, slot % W]
            read.append(tokenizer.decode(ids_BT[row, start_BT[row, at] : at + 1]))
        (text,) = tokenizer.cut([triplets[number].sent0], 32)
        middle, last = (part in SFP.fill(text) and part for part in read)
        assert SFP.fill(text).endswith(last)
        assert middle + ", it can be summarized as" == last


def test_refuses_a_template_without_a_middle(prompt):
    with pytest.raises(ValueError, match="template eol has no middle"):
        offsets_of(("middle", "last"), prompt)
