# SPDX-License-Identifier: Apache-2.0
"""Laws of the synthetic data: what development shares with training, and what its gold means."""

import collections
import itertools
import math
import re

import numpy as np
import pytest
import scipy.stats

from prompteol_jax.models import tiny
from train.data import synthetic

pytestmark = pytest.mark.unit

CONCEPT = {form: (word.slot, word.concept) for word in synthetic.WORDS for form in word.forms}
# Both forms of a verb are one word here: a pair seen as "washes" counts as seen as "washing".
LEMMA = {form: word.forms[0] for word in synthetic.WORDS for form in word.forms}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def content(text: str) -> set[str]:
    return {LEMMA[word] for word in words(text) if word in LEMMA}


def concepts(text: str) -> set[tuple[str, int]]:
    return {CONCEPT[word] for word in words(text) if word in CONCEPT}


def pairs_of_words(texts) -> set[frozenset[str]]:
    return {frozenset(pair) for text in texts for pair in itertools.combinations(content(text), 2)}


def bag_of_words_cosine(a: str, b: str) -> float:
    left, right = collections.Counter(words(a)), collections.Counter(words(b))
    dot = sum(left[word] * right[word] for word in left)
    return dot / math.hypot(*left.values()) / math.hypot(*right.values())


@pytest.fixture(scope="module")
def rows():
    return synthetic.synthetic_triplets(0, 10_000)


@pytest.fixture(scope="module")
def dev():
    return synthetic.synthetic_dev(0, 1000)


def test_a_seed_writes_the_same_rows_again_and_another_seed_others():
    triplets, development = synthetic.synthetic_triplets, synthetic.synthetic_dev
    assert triplets(3, 50) == triplets(3, 60)[:50] != triplets(4, 50)
    again, longer, other = development(3, 50), development(3, 60), development(4, 50)
    assert again.texts_a == longer.texts_a[:50] != other.texts_a
    assert again.texts_b == longer.texts_b[:50]
    assert np.array_equal(again.gold, longer.gold[:50])


def test_the_words_are_distinct_and_single_tokens_of_the_tiny_model(rows, dev):
    forms = [form for word in synthetic.WORDS for form in word.forms]
    assert len(forms) == len(set(forms)) == 4 * 24 + 24
    texts = [text for row in rows for text in row] + [*dev.texts_a, *dev.texts_b]
    inside = {word for text in texts for word in re.findall(r"\w+", text)[1:]}
    openings = {re.findall(r"\w+", text)[0] for text in texts}
    assert inside <= set(tiny.WORDS)
    assert openings <= set(tiny.OPENINGS)
    assert max(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts) < 32


@pytest.mark.parametrize("seed", [0, 1])
def test_development_shares_no_sentence_and_no_pair_of_content_words_with_training(rows, seed):
    dev = synthetic.synthetic_dev(seed, 1000)
    trained, asked = {text for row in rows for text in row}, {*dev.texts_a, *dev.texts_b}
    assert not trained & asked
    assert not pairs_of_words(trained) & pairs_of_words(asked)


def test_every_content_word_of_development_occurs_in_training(rows, dev):
    def spoken(texts) -> set[str]:
        return {word for text in texts for word in words(text)}

    trained = spoken(text for row in rows for text in row)
    assert trained >= set(CONCEPT)
    assert spoken([*dev.texts_a, *dev.texts_b]) <= trained


def test_an_entailment_says_no_more_in_other_words(rows):
    for sent0, sent1, _ in rows:
        assert concepts(sent1) <= concepts(sent0)
        assert len(concepts(sent1)) >= 3
        assert content(sent1) - content(sent0)


def test_a_contradiction_replaces_one_or_two_words_and_keeps_the_rest(rows):
    for sent0, _, hard_neg in rows:
        assert 1 <= len(content(sent0) - content(hard_neg)) <= 2
        slots = [sorted(slot for slot, _ in concepts(text)) for text in (sent0, hard_neg)]
        assert slots[0] == slots[1]
        assert not concepts(sent0) <= concepts(hard_neg)
        frames = [
            [word for word in words(text) if word not in CONCEPT and word not in ("a", "an")]
            for text in (sent0, hard_neg)
        ]
        assert frames[0] == frames[1]


def test_negatives_in_a_batch_are_seldom_true(rows):
    false = 0
    for start in range(0, 2560, 256):
        batch = rows[start : start + 256]
        meanings = [concepts(row.sent0) for row in batch]
        entailed = [concepts(row.sent1) for row in batch]
        false += sum(said <= meaning for meaning in meanings for said in entailed) - len(batch)
    assert false < 0.1 * 2560
    assert len({*rows}) > 0.99 * len(rows)


def test_articles_fit_their_nouns(rows):
    for text in (text for row in rows for text in row):
        for article, noun in re.findall(r"\b(an?) (\w+)", text.lower()):
            assert (article == "an") == (noun[0] in "aeiou"), text


def test_gold_is_five_times_the_cosine_of_the_two_meanings(dev):
    for a, b, gold in zip(dev.texts_a, dev.texts_b, dev.gold, strict=True):
        left, right = concepts(a), concepts(b)
        assert gold == pytest.approx(5 * len(left & right) / math.sqrt(len(left) * len(right)))
        assert a != b
    values, counts = np.unique(dev.gold.round(2), return_counts=True)
    assert (values[0], values[-1]) == (0.0, 5.0)
    assert len(values) == 10
    assert counts.max() < 0.4 * len(dev)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counting_common_words_says_little_about_the_gold(seed):
    dev = synthetic.synthetic_dev(seed, 1000)
    guess = [bag_of_words_cosine(a, b) for a, b in zip(dev.texts_a, dev.texts_b, strict=True)]
    assert 100 * scipy.stats.spearmanr(guess, dev.gold).statistic < 30
