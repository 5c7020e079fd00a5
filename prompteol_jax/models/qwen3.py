"""Qwen3 (Yang et al. 2025): LLaMA's block with an RMS norm of each head of q and k before rope.

Heads may be wider or narrower than D / N. Windows are those of Qwen2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from prompteol_jax import nn
from prompteol_jax.models import llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.llama import LlamaConfig, norm_of, read_shape
from prompteol_jax.models.qwen2 import read_upper_windows, windows_to_hf
from prompteol_jax.models.rope import read_rope
from prompteol_jax.weights.mapping import TensorMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The shape of a Qwen3 model."""

    family: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("hidden_act", "silu")
        f.require("num_key_value_heads")
        shape = read_shape(f, H=128, P=32768)
        return shape | dict(
            rope=read_rope(f, shape["H"], shape["P"]),
            attention_bias=f.flag("attention_bias", False),
            tied=f.flag("tie_word_embeddings", False),
            window_L=read_upper_windows(f, shape["L"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        own = {"hidden_act": "silu", "attention_bias": self.attention_bias}
        return {**self.shape_to_hf(), **own, **windows_to_hf(self)}


class Block(llama.Block):
    """LLaMA's block, with norms of the heads of q and k."""

    def __init__(self, config: Qwen3Config, make: nn.Placeholders):
        super().__init__(config, make)
        self.attention = nn.Attention(
            make, bias=config.attention_bias, head_norm_eps=config.norm_eps
        )


make_embedding, make_final_norm = llama.make_embedding, llama.make_final_norm
HEAD_NORMS: Final[tuple[TensorMap, ...]] = (
    norm_of("self_attn.q_norm", "attention.q_norm", "H"),
    norm_of("self_attn.k_norm", "attention.k_norm", "H"),
)
WEIGHTS: Final[tuple[TensorMap, ...]] = (*llama.WEIGHTS, *HEAD_NORMS)
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
