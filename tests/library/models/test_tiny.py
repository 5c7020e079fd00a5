"""Laws of the tiny model's tokenizer: known words are one token, any text survives."""

from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.models.tiny import OPENINGS, VOCABULARY_SIZE, WORDS, tiny_tokenizer
from prompteol_jax.text.template import PROMPTEOL

TOKENIZER = tiny_tokenizer()


PIECES = st.sampled_from(["</s>", "<pad>", "the", "The", " dog", " ", '"', "é", "😀", "\n", "\x00"])


@given(st.text() | st.lists(PIECES).map("".join))
def test_round_trip_for_any_text(text):
    (ids,) = TOKENIZER.ids([text])
    assert ids[0] == 2
    assert 2 not in ids[1:]
    assert TOKENIZER.decode(ids) == text


def test_every_known_word_is_one_token():
    spelled = [*(f" {word}" for word in WORDS), *OPENINGS]
    assert [
        text for text, ids in zip(spelled, TOKENIZER.ids(spelled), strict=True) if len(ids) != 2
    ] == []


def test_words_are_distinct_and_cover_the_template_and_all_openings():
    assert len(WORDS) == len(set(WORDS)) > 400
    assert len(OPENINGS) == len(set(OPENINGS))
    assert {word.lower() for word in OPENINGS} <= set(WORDS)
    assert {"this", "sentence", "means", "in", "one", "word"} <= set(WORDS)


def test_vocabulary_is_filled_and_fits_the_embedding():
    assert VOCABULARY_SIZE % 128 == 0
    assert VOCABULARY_SIZE - 128 < TOKENIZER.vocab_size <= VOCABULARY_SIZE
    everything = " ".join((*WORDS, *OPENINGS))
    assert max(TOKENIZER.ids([everything])[0]) < TOKENIZER.vocab_size


def test_prompt_of_known_words_is_short():
    (ids,) = TOKENIZER.ids([PROMPTEOL.fill("A man is playing the guitar.")])
    assert len(ids) == 19  # BOS, 4 before, 7 of the sentence, 7 after


def test_ids_are_pinned():
    # Other ids make every saved tiny model and adapter useless.
    assert tiny_tokenizer().sha256 == TOKENIZER.sha256
    (ids,) = TOKENIZER.ids(["The man is zig."])
    assert ids.tolist() == [2, 2344, 302, 394, 224, 93, 76, 74, 17]
