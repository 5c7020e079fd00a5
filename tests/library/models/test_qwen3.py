"""Laws of Qwen3's config; hidden states are in test_parity, parts in test_components."""

import dataclasses
import re

import pytest

from prompteol_jax.models.qwen3 import Qwen3Config
from prompteol_jax.models.rope import Rope

# Qwen/Qwen3-0.6B's config.json.
PUBLISHED = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
CONFIG = Qwen3Config(
    L=28,
    D=1024,
    N=16,
    K=8,
    H=128,
    F=3072,
    V=151936,
    P=40960,
    rope=Rope(theta=1e6),
    tied=True,
)
WINDOWS = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 26}
KINDS = ["full_attention"] * 27 + ["sliding_attention"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"sliding_window": 4096}, {}),  # not used
        (WINDOWS, {"window_L": (None,) * 26 + (4096, 4096)}),
        (WINDOWS | {"layer_types": KINDS}, {"window_L": (None,) * 27 + (4096,)}),
        (
            {"attention_bias": True, "tie_word_embeddings": False},
            dict(attention_bias=True, tied=False),
        ),
    ],
    ids=str,
)
def test_reads_published_configs_and_their_variants_and_writes_them_back(changes, expected):
    config = Qwen3Config.from_hf(PUBLISHED | changes)
    assert config == dataclasses.replace(CONFIG, **expected)
    assert Qwen3Config.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("changes", [{}, WINDOWS])
def test_transformers_reads_what_is_written(changes):
    from transformers import Qwen3Config as Theirs

    config = Qwen3Config.from_hf(PUBLISHED | changes)
    theirs = Theirs(**config.to_hf())
    assert Qwen3Config.from_hf(theirs.to_dict()) == config
    assert theirs.sliding_window == (4096 if changes else None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ({"num_key_value_heads": 5}, "num_attention_heads = 16 is not a multiple of"),
        ({"head_dim": 127}, "head_dim = 127 is odd"),
        ({"layer_types": KINDS}, "sliding_attention, but use_sliding_window is not true"),
        ({"layer_types": ["linear_attention"] * 28}, "is not one of ['full_attention', 'sliding"),
        ({"layer_types": KINDS[:3]}, "for each layer"),
        (WINDOWS | {"sliding_window": 0}, "sliding_window = 0 is not a whole number from 1 up"),
        ({"mlp_bias": True}, "mlp_bias = True is unknown and could change the numbers"),
    ],
)
def test_refuses_what_would_change_the_numbers(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Qwen3Config.from_hf(PUBLISHED | changes)
