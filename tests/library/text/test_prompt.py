"""Laws of prompts in ids: prefix and rest are the whole, a cut keeps as much as can be."""

import csv
import os
import threading
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prompteol_jax.errors import UserError
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.prompt import Prompt, check_length, show
from prompteol_jax.text.template import PROMPTEOL, TEMPLATES, Template
from prompteol_jax.text.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.unit

REAL = ("opt-tokenizer", "llama-tokenizer", "tinystories-656k")
NAMES = ("tiny", *REAL)
AWKWARD = st.lists(
    st.sampled_from(
        ['"', "'", "(", ")", " ", "  ", "\n", "\t", ".", "?", "...", "</s>", "<s>", "_", "a", "The"]
        + [
            " man",
            "ing",
            "2024",
            "é",
            "e\u0301",
            "你好",
            "😀",
            "👩‍👩‍👧",
            "\u200b",
            "\u00a0",
            "\udcff",
            "\x00",
        ]
    ),
    max_size=40,
).map("".join)


@lru_cache
def tokenizer(name):
    if name == "tiny":
        return tiny_tokenizer()
    folder = os.environ.get("PROMPTEOL_DATA")
    if not folder:
        pytest.skip("PROMPTEOL_DATA is unset: it names the folder of real tokenizers")
    return load_tokenizer(Path(folder) / "weights" / name)


@pytest.fixture(params=NAMES)
def real(request):
    return tokenizer(request.param)


@pytest.fixture(scope="session")
def sentences(data):
    with (data / "nli" / "nli_triplets.csv").open(encoding="utf-8", newline="") as file:
        return [row["sent0"] for _, row in zip(range(1000), csv.DictReader(file), strict=False)]


@pytest.mark.parametrize("template", ["eol", "eol-icl-6.7b", "none"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(AWKWARD | st.text(), max_size=6))
@example(texts=["", "(", '"', "\udc80", "  ", "\n"])
def test_prefix_and_own_ids_are_the_whole_prompt(name, template, texts):
    t = tokenizer(name)
    prompt = Prompt(TEMPLATES[template], t, max_tokens=4096)
    ids, shared, truncated = prompt(texts)
    assert not truncated.any()
    assert len(ids) == len(shared) == len(texts)
    whole = t.ids([TEMPLATES[template].fill(text) for text in texts])
    for own, is_shared, expected in zip(ids, shared, whole, strict=True):
        assert own.dtype == np.int32
        assert len(own) > 0
        joined = [*prompt.prefix_C, *own] if is_shared else [*own]
        assert joined == expected.tolist()
        assert is_shared == (expected[: len(prompt.prefix_C)].tolist() == [*prompt.prefix_C])


def test_stable_prefix_holds_for_every_real_sentence(real, sentences):
    prompt = Prompt(PROMPTEOL, real, max_tokens=2048)
    assert prompt(sentences).shared.all()
    # BOS, "This", " sentence", " :" at least; the quote belongs to the sentence.
    assert len(prompt.prefix_C) >= 4


def test_prefix_covers_the_demonstration(real):
    shown = Prompt(TEMPLATES["eol-icl-13b"], real, max_tokens=2048).prefix_C
    assert "Venison" in real.decode(shown)
    assert "This sentence" in real.decode(shown).partition("Venison")[2]


def test_a_prompt_that_leaves_the_prefix_comes_whole():
    # " wor" and "d" are one token: only a template that ends inside a word can do that.
    template = Template("joined", "This sentence in one wor", " ends")
    prompt = Prompt(template, tokenizer("tiny"), max_tokens=64)
    ids, shared, _ = prompt(["d", "zebra"])
    assert shared.tolist() == [False, True]
    assert ids[0].tolist() == tokenizer("tiny").ids(["This sentence in one word ends"])[0].tolist()


def longest_fitting(t, text, max_tokens):
    beginnings = [PROMPTEOL.fill(text[:end]) for end in range(len(text), -1, -1)]
    fitting = [ids.tolist() for ids in t.ids(beginnings) if len(ids) <= max_tokens]
    return fitting[0], len(t.ids(beginnings[:1])[0]) > max_tokens


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=AWKWARD | st.text(max_size=60), max_tokens=st.integers(25, 60))
@example(text="The doctor's unbelievably straightforward reinterpretation. " * 4, max_tokens=31)
@example(text="=" * 300, max_tokens=25)
@example(text=" " * 300, max_tokens=25)
@example(text="😀" * 40, max_tokens=29)
def test_sentence_is_cut_to_its_longest_beginning_that_fits(name, text, max_tokens):
    t = tokenizer(name)
    prompt = Prompt(PROMPTEOL, t, max_tokens=max_tokens)
    ids, shared, truncated = prompt([text])
    whole = [*prompt.prefix_C, *ids[0]] if shared[0] else ids[0].tolist()
    assert (whole, truncated[0]) == longest_fitting(t, text, max_tokens)


def test_real_sentences_are_cut_to_their_longest_beginning_that_fits(real, sentences):
    joined = [" ".join(sentences[n : n + 2]) for n in range(0, 60, 2)]
    prompt = Prompt(PROMPTEOL, real, max_tokens=36)
    ids, shared, truncated = prompt(joined)
    assert shared.all()
    assert truncated.sum() > 10
    for own, cut, text in zip(ids, truncated, joined, strict=True):
        assert ([*prompt.prefix_C, *own], cut) == longest_fitting(real, text, 36)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(text=AWKWARD | st.text(max_size=60), max_tokens=st.integers(25, 60))
@example(text="The doctor's unbelievably straightforward reinterpretation. " * 4, max_tokens=31)
@example(text="=" * 300, max_tokens=25)
@example(text="😀" * 40, max_tokens=29)
def test_a_text_that_loses_its_middle_is_its_two_ends_in_a_whole_template(name, text, max_tokens):
    t = tokenizer(name)
    ids, shared, truncated = Prompt(PROMPTEOL, t, max_tokens=max_tokens, truncate="middle")([text])
    at_end = Prompt(PROMPTEOL, t, max_tokens=max_tokens)([text])
    assert truncated[0] == at_end.truncated[0]
    if not truncated[0]:
        assert ids[0].tolist() == at_end.ids[0].tolist()
    else:
        prompt = Prompt(PROMPTEOL, t, max_tokens=max_tokens)
        whole = [*prompt.prefix_C, *ids[0]] if shared[0] else ids[0].tolist()
        ends = ends_of(t, text)
        assert len(whole) <= max_tokens and any(whole == two for two in ends)


def ends_of(t, text):
    """Prompts of every beginning of a text with every end of it."""
    pairs = [(i, j) for i in range(len(text) + 1) for j in range(i, len(text) + 1)]
    pairs = pairs if len(pairs) < 5000 else [p for p in pairs if abs(p[0] - len(text) + p[1]) < 16]
    return [ids.tolist() for ids in t.ids([PROMPTEOL.fill(text[:i] + text[j:]) for i, j in pairs])]


def test_a_long_text_keeps_as_much_of_its_end_as_of_its_beginning(real):
    words = [f"word{1000 + n}" for n in range(400)]
    prompt = Prompt(PROMPTEOL, real, max_tokens=200, truncate="middle")
    ids, _, truncated = prompt([" ".join(words)])
    text = real.decode([*prompt.prefix_C, *ids[0]][1:])
    assert truncated[0] and 196 <= len(prompt.prefix_C) + len(ids[0]) <= 200
    assert 'This sentence : "word1000 word1001 ' in text
    assert text.endswith('word1398 word1399" means in one word:"')
    kept = [word in text for word in words]
    assert abs(kept.index(False) - kept[::-1].index(False)) <= 2


def test_an_error_names_the_first_text_that_does_not_fit():
    prompt = Prompt(PROMPTEOL, tokenizer("tiny"), max_tokens=30, truncate="error")
    assert not prompt(["short"]).truncated.any()
    with pytest.raises(UserError, match="2 texts do not fit .* 30 tokens, the first begins 'long "):
        prompt(["short", "long " * 50, "longer " * 50])
    with pytest.raises(UserError, match="'midle' is not one of end, middle, error .*middle"):
        check_length(9, "midle")


def test_truncation_keeps_template_and_suffix(real):
    prompt = Prompt(TEMPLATES["eol-icl-13b"], real, max_tokens=100)
    ids, _, truncated = prompt(["A man plays the guitar on the beach. " * 60, "A man plays."])
    assert truncated.tolist() == [True, False]
    text = real.decode([real.bos_id, *prompt.prefix_C[1:], *ids[0]])
    assert text.startswith('This sentence : "meat from a deer." means in one word:"Venison".')
    assert text.endswith('" means in one word:"')
    assert 90 < len(prompt.prefix_C) + len(ids[0]) <= 100


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "word " * 200_000, "é" * 10**6, " " * 10**6, "(" * 10**6]
)
def test_endless_text_is_cut_in_no_time(text):
    prompt = Prompt(PROMPTEOL, tokenizer("opt-tokenizer"), max_tokens=2048)
    start = time.perf_counter()
    ids, _, truncated = prompt([text])
    assert time.perf_counter() - start < 5
    assert truncated.all()
    assert 2040 <= len(prompt.prefix_C) + len(ids[0]) <= 2048


def test_endless_text_that_fits_is_not_cut():
    # A run of unknown characters is one id in this vocabulary.
    prompt = Prompt(PROMPTEOL, tokenizer("tinystories-656k"), max_tokens=512)
    ids, _, truncated = prompt(["(" * 50_000])
    assert not truncated.any()
    assert len(ids[0]) < 20


def test_refuses_a_template_longer_than_the_model():
    message = "template ke alone is .* tokens and a prompt may have 20; use a shorter template"
    with pytest.raises(ValueError, match=message):
        Prompt(TEMPLATES["ke"], tokenizer("tiny"), max_tokens=20)


def test_no_texts_give_no_ids():
    ids, shared, truncated = Prompt(PROMPTEOL, tokenizer("tiny"), max_tokens=64)([])
    assert ids == []
    assert shared.shape == truncated.shape == (0,)


def test_threads_share_one_prompt(sentences):
    sentences = sentences[:300]
    prompt = Prompt(PROMPTEOL, tokenizer("llama-tokenizer"), max_tokens=40)
    expected = prompt(sentences)
    assert 0 < expected.truncated.sum() < len(sentences)
    results = [None] * 4

    def work(n):
        results[n] = prompt(sentences)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert all(np.array_equal(a, b) for a, b in zip(result.ids, expected.ids, strict=True))
        assert np.array_equal(result.truncated, expected.truncated)


def test_show_lists_every_token_with_its_characters():
    lines = show(PROMPTEOL, tokenizer("tiny"), "A mané.").splitlines()
    assert (
        lines[0]
        == """'This sentence : "A mané." means in one word:"': 17 tokens, 5 of them shared"""
    )
    assert [line.split() for line in lines[1:10]] == [
        ["0", "|", "2", "'</s>'", "''"],
        ["1", "|", "2342", "'This'", "'This'"],
        ["2", "|", "271", "'Ġsentence'", "'", "sentence'"],
        ["3", "|", "2338", "'Ġ:'", "'", ":'"],
        ["4", "|", "2339", "'Ġ\"'", "'", "\"'"],
        ["5", "36", "'A'", "'A'"],
        ["6", "302", "'Ġman'", "'", "man'"],
        ["7", "131", "'Ã'", "'é'"],
        ["8", "106", "'©'", "'é'"],
    ]
    assert len(lines) == 18


def test_show_begins_with_the_text_where_there_is_no_bos():
    bare = Tokenizer(tokenizer("tiny").backend, bos_id=None)
    lines = show(PROMPTEOL, bare, "A man.").splitlines()
    assert lines[1].split() == ["0", "|", "2342", "'This'", "'This'"]


def test_show_marks_nothing_where_the_prefix_is_left():
    shown = show(Template("joined", "This sentence in one wor", " ends"), tokenizer("tiny"), "d")
    assert ": 10 tokens, 0 of them shared" in shown
    assert "|" not in shown


# A token that is added splits the text, so a piece of its own is left for the space before it.
PLACED = {
    "opt-tokenizer": ([2, 713, 3645, 4832, 1437], [0, 22, 250, 2335]),
    "llama-tokenizer": ([1, 910, 10541, 584, 29871], [0, 376, 29909, 11203]),
    "mistral-tokenizer": ([1, 851, 12271, 714, 28705], [0, 345, 28741, 3914]),
    "llama3-tokenizer": ([128000, 2028, 11914, 551, 220], [0, 330, 32, 5679]),
    "qwen2-tokenizer": ([1986, 11652, 549, 220], [0, 330, 32, 5562]),
}


@pytest.mark.first("opt-tokenizer", "llama-tokenizer")
@pytest.mark.parametrize("name", PLACED)
def test_a_placeholder_gives_the_ids_of_a_token_that_transformers_adds(name, data):
    import transformers

    folder = data / "weights" / name
    template = Template("tp", 'This sentence : <PST> "', '" means in one word:"')
    prompt = Prompt(template, load_tokenizer(folder), max_tokens=64, placeholder="<PST>")
    prefix, first = PLACED[name]
    assert prompt.prefix_C.tolist() == prefix
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens(["<PST>"])
    added = theirs.convert_tokens_to_ids("<PST>")
    texts = ["A dog runs.", "(a) x", " b", ""]
    for text, ids, shared in zip(texts, *prompt(texts)[:2], strict=True):
        expected = [0 if i == added else i for i in theirs(template.fill(text))["input_ids"]]
        assert shared and [*prefix, *ids.tolist()] == expected
    assert prompt(texts).ids[0][:4].tolist() == first


def test_a_placeholder_is_the_first_id_of_a_cut_text_too():
    template = Template("tp", 'This sentence : <PST> "', '" means in one word:"')
    prompt = Prompt(template, tiny_tokenizer(), max_tokens=40, placeholder="<PST>")
    ids, shared, cut = prompt(["a dog " * 99, "a"])
    assert shared.all() and cut.tolist() == [True, False]
    assert len(prompt.prefix_C) + len(ids[0]) <= 40 and ids[0][0] == ids[1][0] == 0
