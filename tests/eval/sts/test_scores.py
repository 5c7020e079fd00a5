"""Cosines, correlations and their aggregation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.sts import scores
from eval.sts.tasks import Pairs, Task, read_tasks
from prompteol_jax.text.template import clean_sentence

pytestmark = pytest.mark.unit


class Fixed:
    """Gives every text the vector it was made with."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts):
        return np.array([self.vectors[text] for text in texts], np.float32)


def angles(*degrees):
    """Texts whose cosine with "east" is that of the given angles."""
    turned = {str(d): (np.cos(np.radians(d)), np.sin(np.radians(d))) for d in degrees}
    return Fixed({"east": (1, 0)} | turned)


def angle_pairs(name, golds):
    return Pairs(name, ("east",) * len(golds), tuple(golds), np.array([*golds.values()], float))


TIES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=3, max_size=40)


@settings(max_examples=60, deadline=None)
@given(TIES)
def test_spearman_is_pearson_of_mean_ranks_ties_included(rows):
    gold, degrees = (np.array(column, float) for column in zip(*rows, strict=True))
    if np.ptp(gold) == 0 or np.ptp(degrees) == 0:
        return
    pairs = Pairs("made", ("east",) * len(rows), [str(int(10 * d)) for d in degrees], gold)
    encoder = angles(*range(0, 61, 10))
    task = Task("made", (pairs,))
    cosines = scores.task_cosines(encoder, [task], clean=False)["made"]
    got = scores.score_task(task, cosines)["spearman"]["all"]

    def ranks(values):
        below = (values[:, None] > values).sum(1)
        return below + (values[:, None] == values).sum(1) / 2

    expected = 100 * np.corrcoef(ranks(gold), ranks(-degrees))[0, 1]
    assert got == pytest.approx(expected, abs=1e-9)


def test_task_score_joins_subsets_and_means_weigh_them():
    # Within each subset the order is right; joined, the second lies below the first.
    first = angle_pairs("first", {"10": 2, "20": 1})
    second = angle_pairs("second", {"50": 5, "60": 4, "80": 3, "70": 0})
    task = Task("made", (first, second))
    encoder = angles(10, 20, 50, 60, 70, 80)
    result = scores.evaluate_sts(encoder, [task], clean=False)
    detail = result["detail"]["made"]
    joined = 100 * stats.spearmanr([2, 1, 5, 4, 3, 0], [6, 5, 4, 3, 1, 2]).statistic
    second_only = 100 * (1 - 6 * 2 / (4 * 15))
    assert detail["spearman"]["all"] == pytest.approx(joined)
    assert detail["subsets"]["first"]["spearman"] == pytest.approx(100)
    assert detail["subsets"]["second"]["spearman"] == pytest.approx(second_only)
    assert detail["spearman"]["mean"] == pytest.approx((100 + second_only) / 2)
    assert detail["spearman"]["wmean"] == pytest.approx((2 * 100 + 4 * second_only) / 6)
    degrees = np.radians([10, 20, 50, 60, 80, 70])
    pearson = 100 * np.corrcoef([2, 1, 5, 4, 3, 0], np.cos(degrees))[0, 1]
    assert detail["pearson"]["all"] == pytest.approx(pearson, abs=1e-4)
    assert (detail["pairs"], detail["subsets"]["second"]["pairs"]) == (6, 4)
    assert result["scores"] == {"made": round(joined, 2)}


def test_average_is_the_mean_of_rounded_scores():
    orders = {"x": [0, 1, 2], "y": [1, 0, 2, 3, 4, 5], "z": [0, 1, 3, 2, 4, 5, 6]}
    tasks = [
        Task(name, (Pairs(name, order, order, np.arange(len(order), dtype=float)),))
        for name, order in ((name, list(map(str, order))) for name, order in orders.items())
    ]
    cosines = {name: (np.array(order, float),) for name, order in orders.items()}
    result = scores.score_tasks(tasks, cosines)
    assert result["scores"] == {"x": 100.0, "y": 94.29, "z": 96.43}
    exact = [result["detail"][name]["spearman"]["all"] for name in orders]
    assert exact == pytest.approx([100, 100 * (1 - 2 / 35), 100 * (1 - 1 / 28)])
    assert result["average"] == 96.91
    assert round(sum(exact) / 3, 2) == 96.9


def test_cosine_survives_norms_that_overflow_half_and_single_precision():
    x_nD = np.array([[3e38, 1e38], [1e-30, 0], [300, 400]], np.float32)
    y_nD = np.array([[3e38, 1e38], [1e-30, 1e-30], [-3, -4]], np.float32)
    np.testing.assert_allclose(scores.cosine(x_nD, y_nD), [1, 0.5**0.5, -1], rtol=1e-9)


def test_scores_do_not_depend_on_the_order_of_tasks(bag_of_words):
    texts = ["a cat sat", "the cat sat", "a dog ran", "a dog ran home", "no", "the cat ran"]
    first = Pairs("one", texts[:3], texts[3:], np.array([4.0, 2.0, 1.0]))
    second = Pairs("two", texts[1:5], texts[2:], np.array([3.0, 5.0, 2.0, 0.0]))
    tasks = [Task("first", (first,)), Task("second", (second,))]
    straight = scores.evaluate_sts(bag_of_words, tasks)
    reverse = scores.evaluate_sts(bag_of_words, tasks[::-1])
    assert straight["detail"] == reverse["detail"]
    assert straight["average"] == reverse["average"]


def test_distinct_sentences_are_encoded_in_one_call_and_cleaned_unless_raw(bag_of_words):
    texts = ('say "yes"', "is it?", "is it?", "it is done.")
    pairs = Pairs("made", texts[:2], texts[2:], np.array([1.0, 2.0]))
    task = Task("made", (pairs,))
    scores.evaluate_sts(bag_of_words, [task, Task("again", (pairs,))])
    scores.evaluate_sts(bag_of_words, [task], clean=False)
    cleaned, raw = bag_of_words.calls
    assert sorted(cleaned) == sorted({clean_sentence(text) for text in texts})
    assert sorted(raw) == sorted(set(texts))
    assert "say 'yes'" in cleaned and "is it." in cleaned


def test_progress_reaches_the_encoder_only_where_given(bag_of_words):
    pairs = Pairs("made", ("a", "b c"), ("a d", "b"), np.array([1.0, 2.0]))
    for progress in (None, False):
        scores.task_cosines(bag_of_words, [Task("made", (pairs,))], progress=progress)
    assert bag_of_words.progress == ["not given", False]


def test_development_score_is_the_unrounded_score_of_the_pairs(data, bag_of_words):
    (task,) = read_tasks(data / "senteval", split="dev")
    result = scores.evaluate_sts(bag_of_words, [task])
    got = scores.development_score(bag_of_words, task.subsets[0])
    assert got == result["detail"]["STSBenchmark-dev"]["spearman"]["all"]
    assert round(got, 2) == result["scores"]["STSBenchmark-dev"]
    assert 40 < got < 70


def test_real_tasks_as_the_original_harness_aggregates_them(data, bag_of_words):
    """Follows the original sentence by sentence: its own cosine, its joined lists, its average."""
    tasks = read_tasks(data / "senteval", ["STS12", "STS15", "STSBenchmark"])
    got = scores.evaluate_sts(bag_of_words, tasks, clean=False)
    encode = bag_of_words.encode
    expected = []
    for task in tasks:
        system, gold = [], []
        for pairs in task.subsets:
            for u, v in zip(encode(pairs.texts_a), encode(pairs.texts_b), strict=True):
                system.append(float(np.dot(u, v) / (np.linalg.norm(u) * np.linalg.norm(v))))
            gold += pairs.gold.tolist()
        expected.append(100 * stats.spearmanr(system, gold).statistic)
    # Float32 cosines tie and untie a little differently from float64 ones.
    np.testing.assert_allclose([*got["scores"].values()], expected, atol=0.02)


@pytest.mark.parametrize(
    ("bad", "fault"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "zero")]
)
def test_refuses_vectors_without_a_cosine_naming_the_sentence(bad, fault):
    encoder = Fixed({"good": (1, 2), "poor thing": (bad, 0)})
    pairs = Pairs("made", ("good", "good"), ("good", "poor thing"), np.array([1.0, 2.0]))
    message = f"1 of 2 vectors are {fault}; the first is that of 'poor thing'"
    with pytest.raises(FloatingPointError, match=message):
        scores.evaluate_sts(encoder, [Task("made", (pairs,))], clean=False)


def test_refuses_vectors_of_the_wrong_shape():
    class Short:
        def encode(self, texts):
            return np.ones((1, 3), np.float32)

    pairs = Pairs("made", ("a", "b"), ("c", "d"), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"returned shape \(1, 3\) for 4 texts; expected \(4, D\)"):
        scores.evaluate_sts(Short(), [Task("made", (pairs,))])


def test_refuses_cosines_that_do_not_differ():
    pairs = Pairs("dev", ("a", "b", "c"), ("a", "b", "c"), np.array([1.0, 2.0, 3.0]))
    encoder = Fixed(dict.fromkeys("abc", (1, 0)))
    message = "made dev: no rank correlation, since its 3 cosines do not differ"
    with pytest.raises(FloatingPointError, match=message):
        scores.evaluate_sts(encoder, [Task("made", (pairs,))], clean=False)


def test_refuses_gold_scores_that_do_not_differ():
    pairs = angle_pairs("dev", {"10": 1, "20": 1})
    message = "dev dev: no rank correlation, since its 2 gold scores do not differ"
    with pytest.raises(FloatingPointError, match=message):
        scores.score_task(Task("dev", (pairs,)), [np.array([0.1, 0.2])])
