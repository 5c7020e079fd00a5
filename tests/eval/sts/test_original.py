"""What each quirk of the released script changes, and that nothing else does."""

from pathlib import Path

import numpy as np
import pytest

from eval.sts import original, scores
from eval.sts.pairs import Pairs, Task
from eval.sts.tasks import read_tasks
from prompteol_jax.text.template import clean_sentence


class Table:
    """An encoder that looks vectors up; it notes the texts of each call."""

    pooling = "last"

    def __init__(self, vectors):
        self.vectors, self.calls = vectors, []

    def encode(self, texts, check_finite=True, progress=None):
        self.calls.append(list(texts))
        return np.array([self.vectors[text] for text in texts], np.float32)


def task(vectors, name="STS12", gold=None):
    """Pairs of the first text with every other one."""
    first, *others = vectors
    gold = np.arange(len(others), dtype=float) if gold is None else np.array(gold, float)
    return Task(name, (Pairs("part", [first] * len(others), others, gold),))


def both(vectors, **settings):
    """Cosines as they are, and as the original has them."""
    made = task(vectors)
    ours = scores.task_cosines(Table(vectors), [made], clean=False)["STS12"][0]
    theirs = original.task_cosines(Table(vectors), [made], clean=False, **settings)["STS12"][0]
    return ours, theirs


def test_every_quirk_is_named_once_with_its_source():
    names = [quirk.name for quirk in original.QUIRKS]
    assert len(set(names)) == len(names)
    assert all(quirk.source and quirk.does for quirk in original.QUIRKS)
    assert all(bool(quirk.why) == (quirk.here == "never") for quirk in original.QUIRKS)
    page = (Path(__file__).parents[3] / "docs" / "guides" / "reproduce.md").read_text(
        encoding="utf-8"
    )
    told = [
        line.split("|")[2].strip() for line in page.partition("| peculiarity")[2].splitlines()[2:]
    ]
    assert [when.partition(":")[0] for when in told] == [q.here for q in original.QUIRKS]
    assert set(original.listed("strict")) == {
        *("cosine in the vectors' precision", "float16 vectors", "nan_to_num", "padded mean"),
    }


def test_cosines_in_float32_differ_by_rounding_only():
    rng = np.random.default_rng(0)
    vectors = {f"t{n}.": rng.normal(size=64) for n in range(50)}
    ours, theirs = both(vectors)
    assert 0 < np.abs(ours - theirs).max() < 1e-6


def test_cosines_in_float32_tie_where_float64_tells_them_apart():
    vectors = {"a.": [1, 0], "b.": [1, 1e-5], "c.": [1, 2e-5]}
    ours, theirs = both(vectors)
    assert ours[0] != ours[1]
    assert theirs[0] == theirs[1] == 1


def test_float16_overflows_beyond_a_norm_of_255_and_counts_as_zero():
    vectors = {"a.": [300, 1], "b.": [300, 2], "c.": [200, 1]}
    ours, theirs = both(vectors, half=True)
    assert ours[0] == pytest.approx(1, abs=1e-5)
    assert theirs[0] == 0
    small = {"a.": [3, 1], "b.": [3, 2], "c.": [2, 1]}
    ours, theirs = both(small, half=True)
    assert theirs == pytest.approx(ours, abs=2e-3)
    assert all(cosine == np.float16(cosine) for cosine in theirs)


def test_what_is_not_a_number_counts_as_zero_instead_of_an_error():
    vectors = {"a.": [1, 1], "b.": [np.nan, 1], "c.": [0, 0], "d.": [1, 1]}
    made = task(vectors)
    with pytest.raises(FloatingPointError):
        scores.task_cosines(Table(vectors), [made], clean=False)
    (theirs,) = original.task_cosines(Table(vectors), [made], clean=False)["STS12"]
    assert theirs == pytest.approx([np.sqrt(0.5), 0, 1], abs=1e-6)


def test_the_years_are_sorted_by_words_before_batching_and_the_others_are_not():
    vectors = {"a.": [1, 0], "b c d.": [1, 1], "b.": [1, 2], "b c.": [1, 3]}
    for name, order in (("STS12", ["b.", "b c.", "b c d."]), ("STSBenchmark", [*vectors][1:])):
        encoder = Table(vectors)
        (theirs,) = original.task_cosines(encoder, [task(vectors, name)], clean=False)[name]
        assert encoder.calls == [["a."] * 3, order]
        expected = [1 / np.hypot(1, n) for n in (1, 2, 3)]
        assert theirs == pytest.approx(expected, abs=1e-6)


def test_the_padded_mean_is_taken_in_batches_of_sixteen(monkeypatch):
    seen = []

    def padded(embedder, texts):
        seen.append(list(texts))
        return embedder.encode(texts, check_finite=False) * np.float32(0.5)

    monkeypatch.setattr(original, "encode_padded_mean", padded)
    vectors = {"a": [1, 0], "b": [1, 1], "c": [1, 2]}
    encoder = Table({clean_sentence(text): vector for text, vector in vectors.items()})
    encoder.pooling = "mean"
    (theirs,) = original.task_cosines(encoder, [task(vectors)])["STS12"]
    assert seen == [["a.", "a."], ["b.", "c."]]
    assert theirs == pytest.approx([2**-0.5, 5**-0.5], abs=1e-6)


@pytest.mark.slow
def test_real_scores_are_those_of_the_plain_path_to_a_hundredth(data):
    from prompteol_jax import Embedder

    model = str(data / "weights" / "tinystories-656k")
    embedder = Embedder.from_pretrained(model, dtype="float32")
    tasks = read_tasks(data / "senteval", ("STSBenchmark",), "dev")
    plain = scores.score_tasks(tasks, scores.task_cosines(embedder, tasks))["average"]
    strict = scores.score_tasks(tasks, original.task_cosines(embedder, tasks))["average"]
    half = scores.score_tasks(tasks, original.task_cosines(embedder, tasks, half=True))["average"]
    assert strict == pytest.approx(plain, abs=0.011)
    assert half != strict
    assert half == pytest.approx(plain, abs=3)
