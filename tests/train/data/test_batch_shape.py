"""Laws of the shape: one for all batches of a run, as small as the fullest of them allows."""

import numpy as np
import pytest

from prompteol_jax.distributed import Share
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import PROMPTEOL
from train.data.batch_shape import balanced, choose_batch_shape, row_shapes
from train.data.batches import Batches
from train.data.collate import Collator
from train.data.sentences import Sentences
from train.data.synthetic import synthetic_triplets
from train.data.triplets import Triplet

COLUMNS = ("sent0", "sent1", "hard_neg")
SHORT = [Triplet("A man.", "A man runs.", "No.")] * 30
LONG = Triplet("a man is reading a newspaper " * 30, "A man.", "No.")


@pytest.fixture(scope="module")
def sentences():
    return Sentences(Prompt(PROMPTEOL, tiny_tokenizer(), max_tokens=512), 32, COLUMNS)


def shape_of(rows, sentences, mesh="1x1", batch=8, chunks=1, epochs=1.0):
    share = Share.of(make_mesh(parse_mesh(mesh)))
    batches = Batches(rows, batch=batch, epochs=epochs, seed=0)
    return choose_batch_shape(batches, sentences, share, chunks), batches, share


@pytest.mark.parametrize(("mesh", "chunks"), [("1x1", 1), ("4x2", 1), ("8x1", 1), ("2x1", 3)])
def test_every_batch_fits_and_the_fullest_fills_the_rows(mesh, chunks, sentences):
    rows = [*synthetic_triplets(0, 60), LONG]
    shape, batches, share = shape_of(rows, sentences, mesh, chunks=chunks, epochs=2.0)
    collate = Collator(sentences, share, shape)
    made = [collate(batches[step]).batch.rows for step in range(len(batches))]
    assert {one.ids_BT.shape for one in made} == {(shape.rows * len(share.shards), shape.tokens)}
    used = [(np.asarray(one.last_BS) > 0).any(1).reshape(len(share.shards), -1) for one in made]
    fullest = max(int(shards.sum(1).max()) for shards in used)
    assert fullest <= shape.rows < fullest + chunks
    assert shape.rows % chunks == 0


def test_only_rows_of_the_steps_to_take_are_read(sentences):
    read = set()

    class Noted(list):
        def __getitem__(self, number):
            read.add(number)
            return super().__getitem__(number)

    _, batches, _ = shape_of(Noted(SHORT), sentences, epochs=0.5)
    used = {number for step in range(len(batches)) for number in batches.numbers(step)}
    assert used <= read
    assert len(read) <= len(used) + 3  # checks of types look at one now and then
    assert len(used) == 16


def test_one_sentence_without_the_shared_prefix_leaves_the_whole_run_without(sentences, capsys):
    class Wayward(Prompt):
        """Takes sentences that begin with N for some that begin otherwise."""

        def __call__(self, texts):
            made = super().__call__(texts)
            for n in (n for n, text in enumerate(texts) if text.startswith("No")):
                made.ids[n] = np.concatenate([self.prefix_C, made.ids[n]])
                made.shared[n] = False
            return made

    prompt = Wayward(PROMPTEOL, sentences.prompt.tokenizer, max_tokens=512)
    shape, *_ = shape_of(SHORT, Sentences(prompt, 32, COLUMNS))
    shared, *_ = shape_of(SHORT, sentences)
    assert (shape.shared, shared.shared) == (False, True)
    assert shape.rows * shape.tokens > shared.rows * shared.tokens
    assert "do not begin with the shared prefix" in capsys.readouterr().err


@pytest.mark.parametrize(("longest", "least"), [(3, 64), (64, 64), (65, 72), (130, 136)])
def test_rows_hold_the_longest_sentence_and_little_more(longest, least):
    shapes = row_shapes(longest, 5, make_mesh((1, 1)))
    assert [tokens for tokens, _ in shapes] == [*range(least, max(least, 128) + 1, 8)]
    assert all(most == tokens // 10 for tokens, most in shapes)


def test_triplets_are_distributed_whole_and_evenly():
    tokens = np.random.default_rng(0).integers(10, 120, 256).tolist()
    for shards in (1, 2, 8, 64):
        chosen = balanced(tokens, shards)
        assert chosen.shape == (shards, 256 // shards)
        assert sorted(chosen.ravel().tolist()) == [*range(256)]
        assert (np.diff(chosen) > 0).all()
        filled = [sum(tokens[n] for n in own) for own in chosen]
        assert max(filled) <= 1.02 * np.mean(filled)
