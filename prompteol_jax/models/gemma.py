"""Gemma (Gemma Team 2024): LLaMA's block with norms by 1 + scale, GeGLU and scaled embeddings."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, Final

import jax

from prompteol_jax import nn
from prompteol_jax.models import llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.llama import LlamaConfig, read_shape
from prompteol_jax.models.rope import read_rope

gelu: Final = partial(jax.nn.gelu, approximate=True)  # by tanh


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """The shape of a Gemma model."""

    family: ClassVar[str] = "gemma"
    architecture: ClassVar[str] = "GemmaForCausalLM"
    tied: bool = True

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("use_bidirectional_attention", False)
        f.expect("hidden_act", "gelu_pytorch_tanh", "gelu")  # the first release meant tanh by gelu
        shape = read_gemma_shape(f)
        return shape | {"rope": read_rope(f, shape["H"], shape["P"])}

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        own = {"hidden_act": "gelu_pytorch_tanh", "attention_bias": self.attention_bias}
        return {**self.shape_to_hf(), **own}


def read_gemma_shape(f: Fields, P: int = 8192) -> dict[str, Any]:
    """Read what the configs of Gemma's generations have in common."""
    f.expect("hidden_activation", "gelu_pytorch_tanh")
    f.ignore("cache_implementation")
    f.require("num_key_value_heads")
    return read_shape(f, H=256, P=P) | dict(
        attention_bias=f.flag("attention_bias", False), tied=f.flag("tie_word_embeddings", True)
    )


def make_embedding(config: GemmaConfig, make: nn.Placeholders) -> nn.Embedding:
    """Return the word embedding, times sqrt(D)."""
    return nn.Embedding(make, scale=config.D**0.5)


def make_norm(config: GemmaConfig, make: nn.Placeholders) -> nn.RMSNorm:
    """Return a norm that multiplies by 1 + scale."""
    return nn.RMSNorm(make, eps=config.norm_eps, plus_one=True)


class Block(llama.Block):
    """LLaMA's block, with Gemma's norms and activation."""

    def __init__(self, config: GemmaConfig, make: nn.Placeholders):
        self.attention_norm = make_norm(config, make)
        self.attention = nn.Attention(make, bias=config.attention_bias)
        self.mlp_norm = make_norm(config, make)
        self.mlp = nn.GatedMlp(make, gelu)


make_final_norm = make_norm
WEIGHTS: Final = llama.WEIGHTS
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
