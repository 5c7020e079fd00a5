"""Laws of the kinds of RoPE: fields and frequencies are those of transformers."""

import copy
import re

import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.models.config import Fields
from prompteol_jax.models.context import Layers, Rows, positions, text_tokens
from prompteol_jax.models.rope import (
    DynamicRope,
    LinearRope,
    Llama3Rope,
    LongRope,
    Rope,
    YarnRope,
    read_rope,
    read_ropes_by_type,
)

H, P = 16, 64
SHORT, LONG = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5), (2.0, 3.0, 5.0, 7.0, 8.0, 9.0, 9.5, 9.9)
ORIGINAL = {"original_max_position_embeddings": 24}
ROPES = {
    "default": Rope(theta=5000.0),
    "linear": LinearRope(factor=3.0),
    "dynamic": DynamicRope(factor=3.0),
    "llama3": Llama3Rope(factor=8.0, **ORIGINAL),
    "yarn": YarnRope(factor=4.0, **ORIGINAL),
    "yarn-below-1": YarnRope(factor=0.5, **ORIGINAL),
    "yarn-magnitude": YarnRope(factor=4.0, attention_factor=0.7, truncate=False, **ORIGINAL),
    "yarn-mscale": YarnRope(
        factor=4.0, mscale=1.3, mscale_all_dim=0.5, beta_fast=16.0, beta_slow=2.0, **ORIGINAL
    ),
    "yarn-one-pair": YarnRope(theta=1e30, factor=4.0, beta_fast=1.0, **ORIGINAL),
    "longrope": LongRope(short_factor=SHORT, long_factor=LONG, factor=2.0, **ORIGINAL),
    "longrope-magnitude": LongRope(
        short_factor=SHORT, long_factor=LONG, factor=2.0, attention_factor=1.25, **ORIGINAL
    ),
    "longrope-shorter": LongRope(short_factor=SHORT, long_factor=LONG, factor=0.5, **ORIGINAL),
}


def theirs(fields):
    """Return the rope of transformers' LLaMA."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = dict(hidden_size=64, num_attention_heads=4, max_position_embeddings=P)
    return LlamaRotaryEmbedding(LlamaConfig(**sizes, head_dim=H, **copy.deepcopy(fields)))


def read(fields, **how):
    f = Fields(fields)
    rope = read_rope(f, H, P, **how)
    f.finish()
    return rope


def tables(rope, lengths, T=48):
    """Return cosines and sines of rows of texts, right-padded to T tokens."""
    rows = Rows(jnp.zeros((len(lengths), T), jnp.int32), jnp.array(lengths)[:, None] - 1)
    (table,) = Layers(1, 64, H, 32, ropes=(rope,)).context(rows, 0).ropes
    return [np.broadcast_to(part, (len(lengths), T, H // 2)) for part in table]


@pytest.mark.parametrize("name", ROPES)
def test_cosines_and_sines_are_those_of_transformers_in_texts_of_any_length(name):
    import torch

    rope, lengths = ROPES[name], [1, 24, 25, 48]
    assert rope.inverse_frequencies(H).dtype == np.float32
    cos, sin = tables(rope, lengths)
    for n, length in enumerate(lengths):
        at = torch.arange(length)[None]
        wanted = theirs({"rope_parameters": rope.to_hf()})(torch.zeros(1), at)
        for ours, other in zip((cos, sin), wanted, strict=True):
            found = ours[n, :length]
            np.testing.assert_allclose(found, other[0, :, : H // 2].numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ROPES)
def test_a_rope_survives_the_way_to_hugging_face_and_back(name):
    rope = ROPES[name]
    assert read({"rope_parameters": rope.to_hf()}) == rope
    older = {**rope.to_hf(), "type": rope.kind}
    assert read({"rope_theta": older.pop("rope_theta"), "rope_scaling": older}) == rope


def test_the_length_of_a_text_is_its_own_one_in_packed_rows_and_after_a_prefix():
    start_BT = jnp.array([[0, 0, 0, 3, 3, 5, 5, 5]])
    packed = Rows(jnp.zeros((1, 8), jnp.int32), jnp.array([[4, 2, 6, 0]]), start_BT)
    found = text_tokens(packed, positions(packed, 10))
    np.testing.assert_array_equal(found[0, :7], [13, 13, 13, 12, 12, 12, 12])
    rows = Rows(jnp.zeros((2, 8), jnp.int32), jnp.array([[2, 5], [0, 1]]))
    np.testing.assert_array_equal(text_tokens(rows, positions(rows, 3)), [[9] * 8, [5] * 8])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "su"}}, "RoPE of type ['su'] is not supported; supported: ['d"),
        ({"rope_scaling": {"type": "linear"}}, "RoPE of type 'linear' takes ['factor'], found []"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "RoPE of type [['linear']] is not"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear' is not an object"),
        (
            {"rope_scaling": {"type": "linear", "factor": "4"}},
            "RoPE's factor = '4' is not a number above 0",
        ),
        ({"rope_theta": 0}, "rope_theta = 0 is not a number above 0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0, "beta": 1}},
            "RoPE of type 'linear' takes ['factor'], found ['beta', 'factor']",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 4.0}},
            "RoPE of type ['llama3', 'linear'] is not supported",
        ),
        (
            {"rope_scaling": {**ROPES["yarn"].to_hf(), "truncate": 1}},
            "RoPE's truncate = 1 is neither true nor false",
        ),
        (
            {"rope_scaling": {"type": "yarn", "faktor": 2.0}},
            "'original_max_position_embeddings'], and may take ['attention_factor', 'beta",
        ),
        (
            {"rope_scaling": {**ROPES["longrope"].to_hf(), "long_factor": [1.0, 2.0]}},
            "RoPE's long_factor has 2 numbers, not 8",
        ),
        (
            {"rope_scaling": {**ROPES["longrope"].to_hf(), "short_factor": 2.0}},
            "RoPE's short_factor = 2.0 is not a list of numbers",
        ),
        (
            {
                "rope_scaling": {
                    **ROPES["longrope"].to_hf(),
                    "original_max_position_embeddings": "4",
                }
            },
            "RoPE's original_max_position_embeddings = '4' is not a number above 0",
        ),
        (
            {"rope_scaling": {**ROPES["llama3"].to_hf(), "high_freq_factor": 1.0}},
            "RoPE's high_freq_factor is not above its low_freq_factor",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is unknown and could change"),
    ],
)
def test_refuses_what_would_change_the_numbers(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(fields)


@pytest.mark.parametrize(("share", "pairs"), [(1.0, 8), (0.75, 6), (0.3, 2)])
def test_a_family_may_rotate_a_part_of_each_head(share, pairs):
    rope = read({"partial_rotary_factor": share}, partial=True)
    assert rope.inverse_frequencies(H).shape == (pairs,)
    assert read({"rope_parameters": rope.to_hf()}, partial=True) == rope


def test_refuses_a_part_of_a_head_that_is_no_pairs():
    with pytest.raises(ValueError, match=r"partial_rotary_factor = 0.2 rotates 3 of 16 features"):
        read({"partial_rotary_factor": 0.2}, partial=True)


OLD, NEW = {"rope_type": "linear", "factor": 4.0}, {"rope_type": "default", "rope_theta": 3e4}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": NEW, "rope_scaling": OLD},
        {"rope_parameters": NEW, "rope_scaling": None, "rope_theta": 5e5},
        {"rope_parameters": NEW, "rope_scaling": OLD, "rope_theta": 5e5},
        {"rope_scaling": {**OLD, "rope_theta": 7e4}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": {}, "rope_scaling": {}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    ],
)
def test_of_two_places_rope_is_taken_from_the_one_that_transformers_takes(fields):
    frequencies = theirs(fields).inv_freq.numpy()
    np.testing.assert_allclose(read(fields).inverse_frequencies(H), frequencies, rtol=1e-6)


BY_TYPE = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base", 1e4)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (Rope(theta=1e6), Rope(theta=1e4))),
        (
            {"rope_theta": 3e4, "rope_local_base": 2e4, "rope_scaling": OLD},
            (LinearRope(theta=3e4, factor=4.0), Rope(theta=2e4)),
        ),
        (
            {"rope_parameters": {"sliding_attention": OLD, "full_attention": None}},
            (Rope(theta=1e6), LinearRope(theta=1e4, factor=4.0)),
        ),
    ],
)
def test_layers_of_each_type_may_have_a_rope(fields, expected):
    f = Fields(fields)
    assert read_ropes_by_type(f, H, P, BY_TYPE) == expected
    f.finish()


def test_refuses_a_rope_of_a_type_that_no_layer_has():
    f = Fields({"rope_parameters": {"rope_type": "default"}})
    read_ropes_by_type(f, H, P, BY_TYPE)
    with pytest.raises(ValueError, match=r"rope_parameters has \['rope_type'\], supported"):
        f.finish()
