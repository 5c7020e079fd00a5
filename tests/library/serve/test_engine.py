"""An engine gives each text of a method the bits of `Embedder.encode`, in any batch."""

from __future__ import annotations

from itertools import groupby

import jax
import numpy as np
import pytest

from prompteol_jax.serve.engine import Engine

TEXTS = ["A man plays the guitar.", "", "It rains.", "Two dogs run after one red ball."]
METHODS = [pytest.param("metaeol", marks=pytest.mark.slow), "reverse-eol", "embed-filter/eol"]


def vectors(engine, texts, at_once):
    """The vectors of texts, computed in batches of at most so many prompts."""
    prompts = engine.prompts(texts)
    order = sorted(range(len(prompts.items)), key=lambda n: engine.bucket(prompts.items[n]))
    found = {}
    for bucket, members in groupby(order, key=lambda n: engine.bucket(prompts.items[n])):
        rest, most = list(members), min(at_once, engine.sizes(bucket)[-1])
        for some in (rest[n : n + most] for n in range(0, len(rest), most)):
            z = engine.fetch(engine.launch(bucket, [prompts.items[n] for n in some]))
            found |= dict(zip(some, z, strict=True))
    return engine.finish(prompts, np.stack([found[n] for n in range(len(prompts.items))]))


@pytest.mark.first("reverse-eol")
@pytest.mark.parametrize("method", METHODS)
def test_a_text_has_the_bits_of_encode_in_any_batch(method, embedders, coarse):
    embedder = embedders("tiny", method=method, max_tokens=320)
    engine = Engine(embedder)
    expected = embedder.encode(TEXTS)
    for at_once in (1, 3):
        np.testing.assert_array_equal(vectors(engine, TEXTS, at_once), expected)
    prompts = engine.prompts(["A man. " * 200, "It rains."])
    assert prompts.truncated.tolist() == [True, False]
    assert set(prompts.owners) == {0, 1}


def test_prompts_of_two_buckets_share_a_batch_and_keep_their_bits(embedders):
    embedder = embedders("tiny", max_tokens=64)
    engine = Engine(embedder)
    assert engine.holders((0, 1, True)) == [(0, 1, True)]  # before any proof
    engine.compare_lengths(range(1, 4), shared=True)
    (*_, item) = engine.prompts(TEXTS).items
    assert engine.bucket(item) == (0, 1, True)
    holders = engine.holders((0, 1, True))
    assert len(holders) > 1
    expected = embedder.encode(TEXTS[-1:])
    for holder in holders:
        np.testing.assert_array_equal(engine.fetch(engine.launch(holder, [item])), expected)


@pytest.fixture
def compiled():
    """What jax compiles, as it happens."""
    events = []

    def note(event, seconds, **_):
        if "backend_compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.wide
@pytest.mark.parametrize("method", METHODS)
def test_a_warm_engine_compiles_nothing_more(method, embedders, coarse, compiled):
    engine = Engine(embedders("tiny", method=method, max_tokens=321))
    engine.warm()
    assert compiled
    compiled.clear()
    for at_once in (1, 3):
        vectors(engine, TEXTS, at_once)
    assert not compiled
