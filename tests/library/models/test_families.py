"""Laws of the configs of families like LLaMA: published fields in and out, others refused by name.

Hidden states are in test_parity, parts in test_components, kinds of rope in test_rope.
"""

import dataclasses
import re

import pytest

from prompteol_jax.models import FAMILIES
from prompteol_jax.models.gemma import GemmaConfig
from prompteol_jax.models.gemma2 import Gemma2Config
from prompteol_jax.models.gemma3 import Gemma3Config
from prompteol_jax.models.mistral import MistralConfig
from prompteol_jax.models.olmo2 import Olmo2Config
from prompteol_jax.models.olmo3 import Olmo3Config
from prompteol_jax.models.phi3 import Phi3Config
from prompteol_jax.models.qwen2 import Qwen2Config
from prompteol_jax.models.rope import LinearRope, LongRope, Rope, YarnRope

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SHORT, LONG = [1.0 + n / 100 for n in range(48)], [1.0 + n for n in range(48)]
SU = {"type": "su", "short_factor": SHORT, "long_factor": LONG}
GEMMA3_KINDS = [*["sliding_attention"] * 5, "full_attention"] * 2


def fields(L, D, N, K, F, V, P, **own):
    """Return the fields that all families have, and their own ones."""
    return {
        **dict(hidden_size=D, num_hidden_layers=L, num_attention_heads=N, num_key_value_heads=K),
        **dict(intermediate_size=F, vocab_size=V, max_position_embeddings=P, hidden_act="silu"),
        **dict(initializer_range=0.02, use_cache=True, torch_dtype="bfloat16"),
        **dict(rms_norm_eps=1e-06, attention_dropout=0.0, rope_theta=10000.0),
        **own,
    }


# Shapes and fields of published config.json files, some with fewer layers.
GEMMA_ACT = dict(hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh")
PUBLISHED = {
    "mistral": fields(
        *(32, 4096, 32, 8, 14336, 32000, 32768),
        **dict(sliding_window=4096, tie_word_embeddings=False, rms_norm_eps=1e-5),
    ),
    "qwen2": fields(
        *(28, 3584, 28, 4, 18944, 152064, 131072),
        **dict(max_window_layers=28, sliding_window=131072, use_sliding_window=False),
        **dict(rope_theta=1000000.0, tie_word_embeddings=False, use_mrope=None),
    ),
    "gemma": fields(
        *(18, 2048, 8, 1, 16384, 256000, 8192),
        **dict(head_dim=256, hidden_act="gelu", hidden_activation=None, attention_bias=False),
    ),
    "gemma2": fields(
        *(4, 3584, 16, 8, 14336, 256000, 8192),
        **dict(head_dim=256, query_pre_attn_scalar=256, sliding_window=4096, **GEMMA_ACT),
        **dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, attention_bias=False),
        **dict(cache_implementation="hybrid"),
    ),
    "gemma3_text": fields(
        *(12, 1152, 4, 1, 6912, 262144, 32768),
        **dict(head_dim=256, query_pre_attn_scalar=256, sliding_window=512, **GEMMA_ACT),
        **dict(attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=False),
        **dict(cache_implementation="hybrid", rope_local_base_freq=10000, rope_theta=1000000),
        **dict(sliding_window_pattern=6, rope_scaling=None),
    ),
    "phi3": fields(
        *(32, 3072, 32, 32, 8192, 32064, 4096),
        **dict(rms_norm_eps=1e-05, sliding_window=2047, tie_word_embeddings=False),
        **dict(embd_pdrop=0.0, resid_pdrop=0.0, original_max_position_embeddings=4096),
        **dict(rope_scaling=None, auto_map={}, attention_bias=False),
    ),
    "olmo2": fields(
        *(32, 4096, 32, 32, 11008, 100352, 4096),
        **dict(attention_bias=False, rope_theta=500000, tie_word_embeddings=False),
        **dict(rope_scaling=None),
    ),
    "olmo3": fields(
        *(4, 4096, 32, 32, 11008, 100278, 65536),
        **dict(attention_bias=False, rope_theta=500000, tie_word_embeddings=False),
        **dict(sliding_window=4096, layer_types=[*["sliding_attention"] * 3, "full_attention"]),
        rope_scaling={
            **{"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0},
            **{"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"},
        },
    ),
}
CONFIGS = {
    "mistral": MistralConfig(
        **dict(L=32, D=4096, N=32, K=8, H=128, F=14336, V=32000, P=32768, norm_eps=1e-5),
        window_L=(4096,) * 32,
    ),
    "qwen2": Qwen2Config(
        **dict(L=28, D=3584, N=28, K=4, H=128, F=18944, V=152064, P=131072), rope=Rope(theta=1e6)
    ),
    "gemma": GemmaConfig(L=18, D=2048, N=8, K=1, H=256, F=16384, V=256000, P=8192),
    "gemma2": Gemma2Config(
        **dict(L=4, D=3584, N=16, K=8, H=256, F=14336, V=256000, P=8192),
        window_L=(4096, None, 4096, None),
    ),
    "gemma3_text": Gemma3Config(
        **dict(L=12, D=1152, N=4, K=1, H=256, F=6912, V=262144, P=32768),
        window_L=(*[512] * 5, None) * 2,
    ),
    "phi3": Phi3Config(
        **dict(L=32, D=3072, N=32, K=32, H=96, F=8192, V=32064, P=4096, norm_eps=1e-5),
        window_L=(2047,) * 32,
    ),
    "olmo2": Olmo2Config(
        **dict(L=32, D=4096, N=32, K=32, H=128, F=11008, V=100352, P=4096), rope=Rope(theta=5e5)
    ),
    "olmo3": Olmo3Config(
        **dict(L=4, D=4096, N=32, K=32, H=128, F=11008, V=100278, P=65536),
        rope=YarnRope(
            **dict(theta=5e5, factor=8.0, original_max_position_embeddings=8192),
            attention_factor=1.2079441541679836,
        ),
        window_L=(4096, 4096, 4096, None),
    ),
}
VARIANTS = [
    *((name, {}, {}) for name in PUBLISHED),
    ("mistral", {"sliding_window": None}, {"window_L": None}),
    ("mistral", {"head_dim": 96, "rope_theta": 1e6}, {"H": 96, "rope": Rope(theta=1e6)}),
    (
        "qwen2",
        {"rope_scaling": YARN},
        {"rope": YarnRope(theta=1e6, factor=4.0, original_max_position_embeddings=32768)},
    ),
    (
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 27, "tie_word_embeddings": True},
        {"window_L": (*[None] * 27, 131072), "tied": True},
    ),
    ("gemma", {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 64}, {"H": 64}),
    ("gemma2", {"attn_logit_softcapping": None}, {"score_cap": None}),
    ("gemma2", {"final_logit_softcapping": None}, {"logit_cap": None}),
    ("gemma2", {"layer_types": ["full_attention"] * 4}, {"window_L": None}),
    (
        "gemma3_text",
        {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "layer_types": GEMMA3_KINDS},
        {"rope": LinearRope(theta=1e6, factor=8.0)},
    ),
    ("gemma3_text", {"rope_local_base_freq": 5000.0}, {"local_rope": Rope(theta=5000.0)}),
    ("gemma3_text", {"tie_word_embeddings": False}, {"tied": False}),
    (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        {"causal": False, "window_L": (*[257] * 5, None) * 2},
    ),
    (
        "phi3",
        {"max_position_embeddings": 131072, "rope_scaling": SU, "sliding_window": 262144},
        dict(
            P=131072,
            window_L=(262144,) * 32,
            rope=LongRope(
                **dict(short_factor=tuple(SHORT), long_factor=tuple(LONG), factor=32.0),
                original_max_position_embeddings=4096,
            ),
        ),
    ),
    ("phi3", {"partial_rotary_factor": 0.75}, {"rope": Rope(rotated=0.75)}),
    ("olmo2", {"num_key_value_heads": None, "attention_bias": True}, {"attention_bias": True}),
    ("olmo3", {"rope_scaling": None}, {"rope": Rope(theta=5e5)}),
]


@pytest.mark.parametrize(("name", "changes", "expected"), VARIANTS, ids=str)
def test_published_configs_and_their_variants_go_in_and_out(name, changes, expected):
    config_class, _ = FAMILIES[name]
    config = config_class.from_hf(PUBLISHED[name] | changes)
    assert config == dataclasses.replace(CONFIGS[name], **expected)
    assert config_class.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(("name", "changes", "expected"), VARIANTS, ids=str)
def test_transformers_reads_what_is_written(name, changes, expected):
    from transformers import AutoConfig

    config_class, _ = FAMILIES[name]
    config = config_class.from_hf(PUBLISHED[name] | changes)
    theirs = AutoConfig.for_model(**config.to_hf())
    assert config_class.from_hf(theirs.to_dict()) == config


REFUSALS = [
    *((name, {"new": 1}, "new = 1 is unknown and could change the numbers") for name in PUBLISHED),
    *((name, {"attention_dropout": 0.1}, "attention_dropout = 0.1 is not") for name in PUBLISHED),
    *((name, {"head_dim": 25}, "head_dim = 25 is odd") for name in PUBLISHED if name != "phi3"),
    *(
        (name, {"num_key_value_heads": None}, "num_key_value_heads is missing")
        for name in ("mistral", "qwen2", "gemma", "gemma2", "gemma3_text")
    ),
    *(
        (name, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not")
        for name in ("gemma", "gemma2")
    ),
    ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types = ['full_attention'"),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0 is not a whole number from 1 up"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 28}, "but use_sliding_window is not true"),
    ("gemma", {"hidden_act": "silu"}, "hidden_act = 'silu' is not supported"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu' is not supported"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping = 0 is not a number above"),
    ("gemma2", {"sliding_window": None}, "names sliding_attention, but sliding_window is null"),
    ("gemma2", {"layer_types": ["linear_attention"] * 4}, "is not one of ['full_attention', 'sl"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supp"),
    ("phi3", {"head_dim": 64}, "head_dim is not hidden_size / num_attention_heads"),
    ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop = 0.1 is not supported; supported: [0.0]"),
    ("phi3", {"lm_head_bias": True}, "lm_head_bias = True is not supported"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "supported: ['default', 'longr"),
    ("olmo3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters has ['rope_type']"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSALS, ids=str)
def test_refuses_what_would_change_the_numbers(name, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FAMILIES[name][0].from_hf(PUBLISHED[name] | changes)
