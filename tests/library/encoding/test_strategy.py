"""Laws of plans: a stored choice stays, measuring happens on request, deviations are rounding."""

import json

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.encoding import strategy
from prompteol_jax.encoding.buckets import Ladder

WORDS = "a man is playing guitar while the old dog sleeps under that big tree".split()
TEXTS = [" ".join((WORDS * 9)[i % 7 : i % 7 + n]) for i, n in enumerate([1, 3, 20] * 5)]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "prompteol-jax" / "plans"


def test_the_first_choice_that_is_stored_stays(caches):
    first, second = Ladder((8, 40), (4, 1)), Ladder((9, 40), (2, 1))
    assert strategy.stored({"model": "a"}, lambda: first) == first
    assert strategy.stored({"model": "a"}, lambda: second) == first
    assert strategy.stored({"model": "b"}, lambda: second) == second

    def slow():  # while this process measures, another one stores its choice
        strategy.stored({"model": "c"}, lambda: second)
        return first

    assert strategy.stored({"model": "c"}, slow) == second
    assert len(list(caches.iterdir())) == 3
    assert all(json.loads(path.read_text())["key"]["model"] in "abc" for path in caches.iterdir())


def test_a_measured_ladder_follows_the_costs():
    def seconds(per_slab):
        return lambda B, T: float(per_slab + B * T)

    cheap, dear, dearest, busy = (
        strategy.measured(seconds(per_slab), 512, 6, 512, 1) for per_slab in (1, 30, 64, 5000)
    )
    assert 2 * cheap.rows[0] < dear.rows[0] < dearest.rows[0]
    assert busy == dearest  # what only a busy machine shows does not count
    assert all(rows % 8 == 0 for rows in strategy.measured(seconds(9), 4096, 6, 512, 8).rows)


def test_plans_differ_by_rounding_and_only_measured_is_stored(embedders, caches):
    fixed = embedders("tiny")
    expected = fixed.encode(TEXTS)
    for name in ("measured", "fitted", "packed"):
        embedder = Embedder(fixed.pretrained, fixed.template, plan=name)
        z_nD = embedder.encode(TEXTS)
        np.testing.assert_allclose(z_nD, expected, atol=2e-5)
        assert embedder.plan.startswith(f"{name}: ")
        assert "not chosen" not in embedder.plan
    (path,) = caches.iterdir()
    again = Embedder(fixed.pretrained, fixed.template, plan="measured")
    before = path.read_bytes()
    first = again.encode(TEXTS)
    assert path.read_bytes() == before
    np.testing.assert_array_equal(again.encode(TEXTS[::-1])[::-1], first)


def test_a_packed_call_computes_fewer_tokens(embedders):
    fixed = embedders("tiny")
    packed = Embedder(fixed.pretrained, fixed.template, plan="packed")
    texts = [" ".join(WORDS[:n]) + f" {i}" for i, n in enumerate([3, 6, 9, 12] * 40)]
    packed.encode(texts)
    assert packed.report.padded_tokens < 1.35 * packed.report.tokens
    assert packed.report.shapes == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(plan="best"), "plan 'best' is not one of fixed, measured, fitted, packed"),
        (dict(plan="fitted", batch_tokens=64), "plan fitted chooses batch_tokens itself"),
        (dict(plan="packed", pooling="mean"), "plan packed gives last tokens only"),
        (dict(batch_tokens=0), "batch_tokens 0 must be 1 or more"),
    ],
)
def test_refuses_plans_that_cannot_be(settings, message, embedders):
    tiny = embedders("tiny")
    make = getattr(Embedder.__init__, "__wrapped__", Embedder.__init__)
    with pytest.raises(ValueError, match=message):
        make(Embedder.__new__(Embedder), tiny.pretrained, tiny.template, **settings)
