"""Laws of OPT's config: from and to config.json without loss, strict on the way in."""

import re

import pytest

from prompteol_jax.models import build
from prompteol_jax.models.opt import OptConfig

# facebook/opt-125m's config.json, and what is different in that of 350m.
PUBLISHED = {
    "_name_or_path": "facebook/opt-125m",
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 3072,
    "hidden_size": 768,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "transformers_version": "4.21.0.dev0",
    "use_cache": True,
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
}
OF_350M = dict(
    hidden_size=1024,
    ffn_dim=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    word_embed_proj_dim=512,
    do_layer_norm_before=False,
)
CONFIG = OptConfig(L=12, D=768, N=12, F=3072, V=50272, P=2048, E=768)


def test_reads_the_published_configs():
    assert OptConfig.from_hf(PUBLISHED) == CONFIG
    of_350m = OptConfig.from_hf(PUBLISHED | OF_350M)
    assert (of_350m.width, of_350m.pre_norm, of_350m.L) == (512, False, 24)
    letters = dict(L=12, D=768, N=12, F=3072, V=50272, E=768, H=64, K=12, I=768, J=768, P=2050)
    assert CONFIG.sizes == letters


@pytest.mark.parametrize(
    "changes",
    [{}, OF_350M, {"_remove_final_layer_norm": True}, {"dropout": 0.0}, {"vocab_size": 7}],
)
def test_round_trip_through_config_json(changes):
    config = OptConfig.from_hf(PUBLISHED | changes)
    assert OptConfig.from_hf(config.to_hf()) == config


def test_transformers_reads_what_is_written():
    from transformers import OPTConfig

    config = OptConfig.from_hf(PUBLISHED | OF_350M)
    theirs = OPTConfig(**config.to_hf())
    assert OptConfig.from_hf(theirs.to_dict()) == config
    assert theirs.word_embed_proj_dim == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu"}, "activation_function = 'gelu' is not supported"),
        ({"enable_bias": False}, "enable_bias = False is not supported; supported: [True]"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False is"),
        ({"num_attention_heads": 7}, "hidden_size = 768 is not a multiple of num_attention_heads"),
        ({"ffn_dim": None}, "ffn_dim is missing"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: the weights are stored quantized",
        ),
        ({"ffn_dim": "3072"}, "ffn_dim = '3072' is not a whole number from 1 up"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is above 10000"),
        ({"hidden_size": 2**40}, "hidden_size = 1099511627776 is above 2147483647"),
        ({"dropout": "0.1"}, "dropout = '0.1' is not a number from 0 up"),
        ({"dropout": 1.0}, "dropout = 1.0 is not below 1"),
        ({"do_layer_norm_before": "false"}, "do_layer_norm_before = 'false' is neither true nor"),
        (
            {"ffn_dim": "big", "layerdrop": 0.1, "rotary": True},
            "layerdrop = 0.1 is not supported; supported: [0.0]; ffn_dim = 'big' is not a whole "
            "number from 1 up; rotary = True is unknown and could change the numbers",
        ),
    ],
)
def test_refuses_what_would_change_the_numbers(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        OptConfig.from_hf(PUBLISHED | changes)


def test_the_models_own_dropout_can_be_overridden():
    assert build.replace_dropout(CONFIG, None) is CONFIG
    assert build.replace_dropout(CONFIG, 0.0).dropout == 0.0
