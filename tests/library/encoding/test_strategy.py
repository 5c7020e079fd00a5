"""Laws of plans: what is asked for stays, and vectors differ by rounding."""

import numpy as np
import pytest

from prompteol_jax import Embedder

WORDS = "a man is playing guitar while the old dog sleeps under that big tree".split()
TEXTS = [" ".join((WORDS * 9)[i % 7 : i % 7 + n]) for i, n in enumerate([1, 3, 20] * 5)]


@pytest.mark.wide
@pytest.mark.fast("packed")
@pytest.mark.parametrize("plan", ["fitted", "packed"])
def test_plans_differ_by_rounding(plan, embedders):
    fixed = embedders("tiny")
    embedder = Embedder(fixed.pretrained, fixed.template, plan=plan)
    np.testing.assert_allclose(embedder.encode(TEXTS), fixed.encode(TEXTS), atol=2e-5)
    assert embedder.plan.startswith(f"{plan}: ")
    assert "not chosen" not in embedder.plan


def test_fitted_buckets_are_chosen_by_the_first_texts_and_stay(embedders):
    fixed = embedders("tiny")
    embedder = Embedder(fixed.pretrained, fixed.template, plan="fitted")
    assert embedder.encode([]).shape == (0, 128)
    assert embedder.plan == "fitted: not chosen yet"
    first, plan = embedder.encode(TEXTS), embedder.plan
    assert embedder.report.padded_tokens < 3 * embedder.report.tokens
    np.testing.assert_array_equal(embedder.encode(TEXTS[::-1])[::-1], first)
    embedder.encode(["a dog"])
    assert embedder.plan == plan


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
        (dict(plan="best"), "plan 'best' is not one of fixed, fitted, packed"),
        (dict(plan="pack"), "not one of fixed, fitted, packed; nearest: packed"),
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
