"""Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA's block with biases of queries, keys and values.

The layers from some number on may have a sliding window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from prompteol_jax import nn
from prompteol_jax.models import llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.llama import LlamaConfig, read_shape
from prompteol_jax.models.rope import read_rope
from prompteol_jax.models.windows import FULL, SLIDING, Windows, layer_types, read_windows, widest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """The shape of a Qwen2 model."""

    family: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("hidden_act", "silu")
        f.require("num_key_value_heads")
        shape = read_shape(f, P=32768)
        return shape | dict(
            rope=read_rope(f, shape["H"], shape["P"]),
            tied=f.flag("tie_word_embeddings", False),
            window_L=read_upper_windows(f, shape["L"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        return {**self.shape_to_hf(), "hidden_act": "silu", **windows_to_hf(self)}


def read_upper_windows(f: Fields, L: int) -> Windows | None:
    """Read the windows of the layers, as transformers' Qwen2Config does."""
    is_used = f.flag("use_sliding_window", False)
    window = f.integer("sliding_window", 4096) if is_used else 1
    f.ignore("sliding_window")
    first = f.take("max_window_layers", 28)
    slides = [is_used and type(first) is int and n >= first for n in range(L)]
    window_L = read_windows(f, L, window, [SLIDING if s else FULL for s in slides])
    if window_L is not None and not is_used:
        f.wrong("layer_types names sliding_attention, but use_sliding_window is not true")
    return window_L


def windows_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Return the fields that `read_upper_windows` reads."""
    return {
        "use_sliding_window": config.window_L is not None,
        "sliding_window": widest(config.window_L),
        "layer_types": layer_types(config.window_L, config.L),
    }


class Block(llama.Block):
    """LLaMA's block, with biases of queries, keys and values."""

    def __init__(self, config: Qwen2Config, make: nn.Placeholders):
        super().__init__(config, make)
        self.attention = nn.Attention(make, bias=True, out_bias=False)


make_embedding, make_final_norm = llama.make_embedding, llama.make_final_norm
WEIGHTS: Final = llama.WEIGHTS
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
