"""Qwen3 (Yang et al. 2025): LLaMA's block with an RMS norm of each head of q and k before rope.

Heads may be wider or narrower than D / N; layers may have a sliding window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from prompteol_jax import nn
from prompteol_jax.models import llama
from prompteol_jax.models.config import MOST_LAYERS, Fields, shown
from prompteol_jax.models.context import Layers
from prompteol_jax.models.llama import LlamaConfig, Rope
from prompteol_jax.weights.mapping import TensorMap

_KINDS: Final = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The shape of a Qwen3 model; P is the longest prompt.

    Attributes:
        window_L: number of last tokens that each layer attends to, None for all of them; None
            where no layer has a window.
    """

    family: ClassVar[str] = "qwen3"
    window_L: tuple[int | None, ...] | None = None

    def layers(self, depth: int) -> Layers:
        """Return what the first `depth` layers are, but for their weights."""
        window_L = self.window_L and self.window_L[:depth]
        return Layers(depth, self.D, self.H, ropes=(self.rope,), window_L=window_L)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Qwen3Config:
        """Read the fields of a `config.json`.

        Raises: UserError that names every field that is missing, unknown or out of range.
        """
        f = Fields(fields)
        f.expect("hidden_act", "silu")
        f.expect("attention_dropout", 0.0)
        f.require_multiple("num_attention_heads", "num_key_value_heads")
        L = f.integer("num_hidden_layers", most=MOST_LAYERS)
        config: dict[str, Any] = dict(
            L=L,
            D=f.integer("hidden_size"),
            N=f.integer("num_attention_heads"),
            K=f.integer("num_key_value_heads"),
            H=f.integer("head_dim", 128),
            F=f.integer("intermediate_size"),
            V=f.integer("vocab_size"),
            P=f.integer("max_position_embeddings", 32768),
            norm_eps=f.number("rms_norm_eps", 1e-6),
            rope=Rope.from_hf(f),
            attention_bias=f.flag("attention_bias", False),
            tied=f.flag("tie_word_embeddings", False),
            window_L=_windows(f, L),
        )
        if config["H"] % 2:
            f.wrong(f"head_dim = {config['H']} is odd; RoPE rotates pairs")
        f.finish()
        return cls(**config)

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        fields = super().to_hf()
        del fields["mlp_bias"]
        window_L = self.window_L or (None,) * self.L
        windows = {window for window in window_L if window is not None}
        return {
            **fields,
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "use_sliding_window": bool(windows),
            "sliding_window": max(windows, default=None),
            "layer_types": [_KINDS[window is not None] for window in window_L],
        }


def _windows(f: Fields, L: int) -> tuple[int | None, ...] | None:
    """Read the windows of the layers, as transformers' Qwen3Config does."""
    is_used = f.flag("use_sliding_window", False)
    window = f.integer("sliding_window", 4096) if is_used else f.take("sliding_window", None)
    first = f.take("max_window_layers", 28)
    kinds = f.take("layer_types", None)
    if kinds is None:
        kinds = [_KINDS[is_used and type(first) is int and n >= first] for n in range(L)]
    if not isinstance(kinds, list) or len(kinds) != L or any(kind not in _KINDS for kind in kinds):
        f.wrong(f"layer_types = {shown(kinds)} is not one of {list(_KINDS)} for each layer")
        return None
    if _KINDS[1] not in kinds:
        return None
    if not is_used:
        f.wrong("layer_types names sliding_attention, but use_sliding_window is not true")
    return tuple(window if kind == _KINDS[1] else None for kind in kinds)


class Block(llama.Block):
    """LLaMA's block, with norms of the heads of q and k."""

    def __init__(self, config: Qwen3Config, make: nn.Placeholders):
        super().__init__(config, make)
        self.attention = nn.Attention(
            make, bias=config.attention_bias, head_norm_eps=config.norm_eps
        )


make_embedding, make_final_norm = llama.make_embedding, llama.make_final_norm
WEIGHTS: Final[tuple[TensorMap, ...]] = (
    *llama.WEIGHTS,
    TensorMap("layers.{l}.self_attn.q_norm.weight", "block.attention.q_norm.scale", "H -> H"),
    TensorMap("layers.{l}.self_attn.k_norm.weight", "block.attention.k_norm.scale", "H -> H"),
)
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
