"""Laws of the decoder: nothing flows backwards, padding and prefix are only ways to compute."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.encoding.runners import (
    Reading,
    encode,
    encode_after,
    encode_as,
    prefill,
    prefill_padded,
)
from prompteol_jax.methods.pooling import Mean
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops import dropout

NAMES = ("opt", "opt-350m", "llama", "qwen3", "gemma3", "olmo2")
IDS_BT = np.random.default_rng(0).permutation(48).reshape(4, 12).astype(np.int32)  # all distinct
LAST_BS = np.array([[11], [6], [0], [3]], np.int32)
ROWS = Rows(jnp.asarray(IDS_BT), jnp.asarray(LAST_BS))


def encode_mean(model, rows):
    """Return the mean of every row's states."""
    reading = Reading(Mean(), first_BS=np.zeros_like(rows.last_BS))
    return encode_as(model, rows, None, reading)[:, 0]


def whole(prefix, rows):
    """The same sentences with the prefix written out in every row."""
    wide = np.broadcast_to(prefix, (len(rows.ids_BT), len(prefix)))
    return Rows(np.concatenate([wide, rows.ids_BT], axis=1), rows.last_BS + len(prefix))


@partial(jax.jit, static_argnums=1)
def gradient(model, remat="none"):
    """Of a loss over all vectors, to the word embeddings."""

    def loss(tokens):
        changed = build.fill(model, build.leaves(model) | {"embedding.tokens": tokens})
        return jnp.square(changed(ROWS, remat=remat)).sum()

    return jax.grad(loss)(model.embedding.tokens[...])


@pytest.mark.wide
@pytest.mark.fast("opt", "llama")
@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows_from_a_sentence_to_tokens_behind_its_last(name, decoders):
    _, model = decoders(name)
    reached_BT = np.abs(gradient(model)).max(1)[IDS_BT] > 0
    np.testing.assert_array_equal(reached_BT, np.arange(12) <= LAST_BS)


@pytest.mark.first("opt-350m")
@pytest.mark.fast("llama", "opt-350m", "opt")
@pytest.mark.parametrize("name", NAMES)
def test_what_fills_the_padding_never_matters(name, decoders):
    _, model = decoders(name)
    other = np.where(np.arange(12) <= LAST_BS, IDS_BT, 59 - IDS_BT)
    for of in (encode, encode_mean):
        np.testing.assert_array_equal(of(model, ROWS), of(model, Rows(other, LAST_BS)))
    cache = prefill(model, IDS_BT[0, :5])
    np.testing.assert_array_equal(
        encode(model, ROWS, cache), encode(model, Rows(other, LAST_BS), cache)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_in_any_place_and_company(name, decoders):
    _, model = decoders(name)
    order = np.array([2, 0, 3, 1])
    moved = Rows(IDS_BT[order], LAST_BS[order])
    np.testing.assert_array_equal(encode(model, moved), encode(model, ROWS)[order])


@pytest.mark.first("opt-1", "gemma3-5")
@pytest.mark.parametrize(
    ("name", "C"),
    [
        ("opt", 0),
        ("opt", 1),
        ("opt", 5),
        ("opt-350m", 5),
        ("llama", 5),
        ("qwen3", 5),
        ("gemma3", 5),
        ("olmo2", 0),
        ("olmo2", 5),
    ],
)
def test_a_shared_prefix_is_the_same_as_one_in_every_row(name, C, decoders):
    _, model = decoders(name)
    prefix = np.arange(50, 50 + C, dtype=np.int32)
    cache = prefill(model, prefix)
    assert cache.length == C
    z_BSD = encode(model, ROWS, cache)
    np.testing.assert_allclose(z_BSD, encode(model, whole(prefix, ROWS)), atol=2e-5)


@pytest.mark.fast("opt")
@pytest.mark.parametrize("name", NAMES)
def test_padding_of_a_prefix_never_matters_and_prefixes_may_be_stacked(name, decoders):
    _, model = decoders(name)
    prefixes = np.array([[50, 51, 52, 0, 0], [53, 54, 55, 56, 57]], np.int32)
    caches = prefill_padded(model, prefixes, np.array([3, 5], np.int32))
    z_ABSD = encode_after(model, ROWS, caches)
    alone = [encode(model, ROWS, prefill(model, ids)) for ids in (prefixes[0, :3], prefixes[1])]
    np.testing.assert_allclose(z_ABSD, alone, atol=2e-5)
    other = prefill_padded(model, prefixes + [[0, 0, 0, 9, 8], [0] * 5], np.array([3, 5], np.int32))
    np.testing.assert_array_equal(encode_after(model, ROWS, other), z_ABSD)


@pytest.mark.first("opt-350m", "gemma3")
@pytest.mark.parametrize("name", NAMES)
def test_every_token_may_be_asked_for_and_the_mean_is_theirs(name, decoders):
    _, model = decoders(name)
    every = encode(model, Rows(IDS_BT, np.tile(np.arange(12, dtype=np.int32), (4, 1))))
    of_last = np.take_along_axis(np.asarray(every), LAST_BS[..., None], axis=1)
    np.testing.assert_allclose(of_last, encode(model, ROWS), atol=2e-5)
    means = [np.asarray(every)[row, : last + 1].mean(0) for row, last in enumerate(LAST_BS[:, 0])]
    np.testing.assert_allclose(encode_mean(model, ROWS), means, atol=2e-5)


@pytest.mark.wide
@pytest.mark.fast("opt-full", "llama-dots")
@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("name", ["opt", "llama", "qwen3", "gemma3", "olmo2"])
def test_recomputing_in_the_backward_pass_changes_no_gradient(name, remat, decoders):
    _, model = decoders(name)
    np.testing.assert_allclose(gradient(model, remat), gradient(model), rtol=1e-4, atol=1e-4)


def token_keys():
    """Keys of rows that hold one sentence each."""
    return dropout.token_keys(jax.random.key(0), *jnp.indices(IDS_BT.shape))


def test_dropout_of_a_row_does_not_depend_on_its_batch_and_acts_in_every_layer(decoders):
    _, model = decoders("opt")
    run = jax.jit(lambda rows, keys: model(rows, None, keys))
    keys = token_keys()
    z_BSD = run(ROWS, keys)
    order = np.array([2, 0, 3, 1])
    moved = run(Rows(IDS_BT[order], LAST_BS[order]), jax.tree.map(lambda word: word[order], keys))
    np.testing.assert_array_equal(moved, z_BSD[order])
    assert (np.abs(np.asarray(z_BSD - encode(model, ROWS))).max((1, 2)) > 1e-2).all()
    assert np.abs(np.asarray(run(ROWS, dropout.fold_keys(keys, 1)) - z_BSD)).max() > 1e-2


def test_llama_has_no_dropout_of_its_own(decoders):
    _, model = decoders("llama")
    keys = token_keys()
    z_BSD = jax.jit(lambda keys: model(ROWS, None, keys))(keys)
    np.testing.assert_allclose(z_BSD, encode(model, ROWS), atol=1e-6)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_a_trace_reads_like_the_code(name, decoders):
    _, model = decoders(name)
    prefix = prefill.lower(model, jnp.arange(4)).as_text(debug_info=True)
    rows = encode.lower(model, ROWS, prefill(model, jnp.arange(4))).as_text(debug_info=True)
    assert [s for s in ("attention", "mlp", "pool") if f"/{s}/" not in rows] == []
    assert "/prefix/" in prefix and "/prefix/" not in rows
