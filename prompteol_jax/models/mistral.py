"""Mistral (Jiang et al. 2023): LLaMA's block, with one sliding window for all layers, or none."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from prompteol_jax.models import llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.llama import LlamaConfig, read_shape
from prompteol_jax.models.rope import read_rope
from prompteol_jax.models.windows import every_layer, widest


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """The shape of a Mistral model."""

    family: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("hidden_act", "silu")
        f.require("num_key_value_heads")
        shape = read_shape(f, P=131072)
        return shape | dict(
            rope=read_rope(f, shape["H"], shape["P"]),
            tied=f.flag("tie_word_embeddings", False),
            window_L=every_layer(f.integer_or_null("sliding_window", 4096), shape["L"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        own = {"hidden_act": "silu", "sliding_window": widest(self.window_L)}
        return {**self.shape_to_hf(), **own}


make_embedding, make_final_norm, Block = llama.make_embedding, llama.make_final_norm, llama.Block
WEIGHTS: Final = llama.WEIGHTS
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
