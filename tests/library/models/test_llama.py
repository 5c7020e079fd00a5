"""Laws of LLaMA's config; rope is in test_rope, hidden states are in test_parity."""

import dataclasses
import re

import pytest

from prompteol_jax.models import build
from prompteol_jax.models.llama import IGNORED, LlamaConfig
from prompteol_jax.models.rope import LinearRope, Llama3Rope, Rope

# meta-llama/Llama-3.1-8B's config.json.
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA3 = Llama3Rope(theta=500000.0, factor=8.0)
CONFIG = LlamaConfig(
    L=32, D=4096, N=32, K=8, H=128, F=14336, V=128256, P=131072, norm_eps=1e-5, rope=LLAMA3
)
LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"rope_scaling": None}, {"rope": Rope(theta=500000.0)}),
        ({"rope_scaling": LINEAR}, {"rope": LinearRope(theta=500000.0, factor=4.0)}),
        ({"rope_scaling": None, "rope_theta": None}, {"rope": Rope()}),
        ({"num_key_value_heads": None}, {"K": 32}),
        ({"head_dim": 96}, {"H": 96}),
        ({"pretraining_tp": 2, "attention_bias": True}, {"attention_bias": True}),
        ({"mlp_bias": True, "tie_word_embeddings": True}, {"mlp_bias": True, "tied": True}),
    ],
)
def test_reads_published_configs_and_their_variants_and_writes_them_back(changes, expected):
    config = LlamaConfig.from_hf(PUBLISHED | changes)
    assert config == dataclasses.replace(CONFIG, **expected)
    assert LlamaConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; supported: ['silu']"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is unknown and could change the numbers"),
        ({"num_key_value_heads": 5}, "num_attention_heads = 32 is not a multiple of num_key_value"),
        ({"num_attention_heads": 24}, "hidden_size = 4096 is not a multiple of num_attention_head"),
        ({"rms_norm_eps": "1e-06"}, "rms_norm_eps = '1e-06' is not a number from 0 up"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan is not a number from 0 up"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' is neither true nor false"),
        ({"head_dim": 65}, "head_dim = 65 is odd; RoPE rotates pairs"),
        ({"rope_theta": "1e4"}, "rope_theta = '1e4' is not a number above 0"),
        ({"rope_interleaved": True}, "rope_interleaved = True is not supported"),
        ({"new": "x" * 200}, f"new = '{'x' * 79}... is unknown and could change the numbers"),
    ],
)
def test_refuses_what_would_change_the_numbers(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LlamaConfig.from_hf(PUBLISHED | changes)


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation_autoset": True},
        {"unsloth_fixed": True, "unsloth_version": "2024.12.4"},
        {
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        },
        {"auto_map": {"AutoModelForCausalLM": "modeling.LlamaForCausalLM"}},
    ],
    ids=["transformers 4.46", "unsloth", "SmolLM", "code that is not run"],
)
def test_fields_that_no_vector_depends_on_are_passed_over(fields):
    assert LlamaConfig.from_hf(PUBLISHED | fields) == CONFIG


@pytest.mark.parametrize("name", ["rotary_emb.inv_freq", "layers.3.self_attn.rotary_emb.inv_freq"])
def test_buffers_of_frequencies_are_not_read(name):
    assert any(re.fullmatch(pattern, name) for pattern in IGNORED)


def test_has_no_dropout_to_override():
    assert build.replace_dropout(CONFIG, 0.0) is CONFIG
    with pytest.raises(ValueError, match="--base-dropout 0.3: a model of the family llama has no"):
        build.replace_dropout(CONFIG, 0.3)
    assert CONFIG.dropout == 0.0
