"""Laws of steps: both runners do the same, and another number compiles nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.encoding.layerwise import LayerwiseRunner
from prompteol_jax.encoding.runners import Reading, WholeRunner, auxiliary_heads, encode_as
from prompteol_jax.errors import UserError
from prompteol_jax.methods import steps
from prompteol_jax.methods.edits import TokenCopy
from prompteol_jax.methods.pooling import EveryLayer
from prompteol_jax.methods.steps import CollectOutputs, LastTokenSlot, Steps, SubtractHeads
from prompteol_jax.models.context import Layers
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops.context import LONG

IDS_BT = np.random.default_rng(1).integers(0, 60, (4, 12)).astype(np.int32)
ROWS = Rows(IDS_BT, np.array([[3], [11], [1], [7]], np.int32))
OTHER = Rows(IDS_BT[::-1].copy(), np.array([[4], [10], [2], [6]], np.int32))


def all_steps(model, heads, *, block=1, scale=2.0):
    return Steps(
        SubtractHeads("ns", np.int32(block), np.float32(scale), heads),
        CollectOutputs(np.arange(model.depth, dtype=np.float32)),
        LastTokenSlot(np.arange(model.depth) > 1),
    )


@pytest.mark.wide
@pytest.mark.fast("every-block-opt")
@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize("every", [False, True], ids=["sum", "every-block"])
def test_both_runners_take_the_same_steps(name, every, decoders):
    _, model = decoders(name)
    found = []
    for runner in (WholeRunner(model), LayerwiseRunner(model)):
        cache = runner.prefill(np.arange(5, dtype=np.int32))
        heads = runner.heads(OTHER, cache, 1)
        last = runner.heads(OTHER, cache, model.depth - 1)
        copy = TokenCopy(np.int32(1), np.int32(2), np.zeros(model.width, np.float32))
        reading = Reading(edits=(copy,), steps=all_steps(model, heads))
        if every:
            reading = dataclasses.replace(reading, pooling=EveryLayer())
        found.append((heads, last, runner.encode(ROWS, cache, reading)))
    for whole, layerwise in zip(*found, strict=True):
        np.testing.assert_allclose(layerwise, whole, atol=5e-5)
    B, S = ROWS.last_BS.shape
    assert found[0][2].shape == (B, S, model.width * (model.depth if every else 1))


def test_another_block_scale_or_range_compiles_nothing(decoders):
    _, model = decoders("llama")
    cache = WholeRunner(model).prefill(np.arange(5, dtype=np.int32))
    sizes = []
    for block, scale, start in ((0, 2.0, 0), (1, 0.5, 1), (2, 3.0, 2)):
        heads = auxiliary_heads(model, OTHER, cache, np.int32(block))
        copy = TokenCopy(np.int32(start), np.int32(3), np.zeros(model.width, np.float32))
        reading = Reading(edits=(copy,), steps=all_steps(model, heads, block=block, scale=scale))
        encode_as(model, ROWS, cache, reading)
        sizes.append((encode_as.programs(), auxiliary_heads.programs()))
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.slow
def test_a_prefix_that_is_padded_is_the_prefix(decoders):
    _, model = decoders("llama")
    ids_C = np.arange(5, dtype=np.int32)
    for runner in (WholeRunner(model), LayerwiseRunner(model)):
        plain, padded = (
            runner.encode(ROWS, runner.prefill(ids_C, length), Reading()) for length in (None, 9)
        )
        np.testing.assert_allclose(padded, plain, atol=2e-5)


def test_empty_positions_of_packed_rows_are_left_alone():
    x_BTD = jnp.zeros((2, 4, 3))
    index_BS = jnp.array([[0, 2, 0], [1, 3, 0]])
    found = steps.put_tokens(x_BTD, index_BS, jnp.ones((2, 3, 3)) * jnp.arange(1, 4)[:, None])
    assert found[..., 0].tolist() == [[1, 0, 2, 0], [0, 1, 0, 2]]


@pytest.mark.parametrize("causal", [True, False])
def test_an_extra_slot_is_seen_beyond_a_window(causal):
    rows = Rows(jnp.zeros((1, 5), jnp.int32), jnp.full((1, 1), 4))
    layers = Layers(1, 16, 8, 32, window_L=(2,), causal=causal)
    context = layers.context(rows, 0).of_layer(layers.info(0))
    wider = steps.with_last_tokens(context, rows.last_BS, True)
    np.testing.assert_array_equal(wider.row_mask(6)[..., :5], context.row_mask(5))
    assert wider.row_mask(6)[..., 5].all() and not context.row_mask(5)[0, 0, 4]


def test_an_extra_slot_refuses_prompts_that_it_does_not_take():
    rows = Rows(jnp.zeros((1, LONG + 1), jnp.int32), jnp.full((1, 1), LONG))
    layers = Layers(1, 16, 8, 32)
    context = layers.context(rows, 0).of_layer(layers.info(0))
    with pytest.raises(UserError, match=f"at most {LONG} tokens; give max_tokens {LONG}"):
        steps.with_last_tokens(context, rows.last_BS, True)


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [(0, None, (0, 8)), (0.5, None, (4, 8)), (-2, None, (6, 8)), (1, -1, (1, 7)), (2, 0.5, (2, 4))],
)
def test_bounds_count_from_the_start_the_end_or_by_fraction(first, end, expected):
    assert steps.block_range(first, end, 8) == expected


def test_a_norm_is_restored_over_all_heads_or_each(decoders):
    v, a = jax.random.normal(jax.random.key(0), (2, 1, 1, 4, 8))
    d = v - a
    for kind, axis in (("nr", (-2, -1)), ("sub_head_norm", -1)):
        found = SubtractHeads(kind, 0, 1.0, a)(v)
        expected = np.linalg.norm(v, axis=axis)
        np.testing.assert_allclose(np.linalg.norm(found, axis=axis), expected, rtol=1e-5)
        cosines = (found * d).sum(axis) / np.linalg.norm(found, axis=axis)
        np.testing.assert_allclose(cosines, np.linalg.norm(d, axis=axis), rtol=1e-5)
    np.testing.assert_allclose(SubtractHeads("scaled_norm", 0, 3.0, a)(v), 3 * _nr(v, a), rtol=1e-5)
    np.testing.assert_allclose(SubtractHeads("self_scaled", 0, 3.0)(v), 3 * v, rtol=1e-6)


def _nr(v, a):
    return SubtractHeads("nr", 0, 1.0, a)(v)
