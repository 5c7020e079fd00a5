"""LLaMA 1, 2 and 3 (Touvron et al. 2023; Llama Team 2024): RMSNorm, RoPE, SwiGLU, grouped heads.

The family's config, modules and weight table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import jax
import numpy as np
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.models.config import MOST_LAYERS, Fields, shown
from prompteol_jax.models.context import Layers
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext
from prompteol_jax.ops.scan import Saved
from prompteol_jax.weights.mapping import TensorMap

# Fields of each kind of RoPE in a config, and what they are called here.
_ROPE_FIELDS: Final = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_positions",
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """How fast each pair of a head turns.

    Attributes:
        scaling: `"default"`, `"linear"` (all frequencies over `factor`) or `"llama3"` (low ones).
    """

    theta: float = 10000.0
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def inverse_frequencies(self, H: int) -> np.ndarray:
        """Radians a place for each of the H/2 pairs, float32.

        Source: transformers' modeling_rope_utils.py for the two kinds of scaling.
        """
        frequency = 1.0 / self.theta ** (np.arange(0, H, 2, dtype=np.float32) / np.float32(H))
        frequency = frequency.astype(np.float32)
        if self.scaling == "linear":
            return (frequency / self.factor).astype(np.float32)
        if self.scaling == "llama3":
            return self._llama3(frequency)
        return frequency

    def _llama3(self, frequency: np.ndarray) -> np.ndarray:
        wavelength = 2 * math.pi / frequency
        turns = self.original_positions / wavelength  # full turns within the first training length
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        return ((1 - smooth) * frequency / self.factor + smooth * frequency).astype(np.float32)

    @classmethod
    def from_hf(cls, f: Fields) -> Rope:
        """Read RoPE's fields, as transformers 5 does where a config gives them twice.

        `rope_scaling` goes before `rope_parameters`, and `rope_theta` in either before the one at
        the top (`convert_rope_params_to_dict` in modeling_rope_utils.py).
        """
        new, old = f.fields("rope_parameters"), f.fields("rope_scaling")
        given = {name: value for name, value in (old or new).items() if value is not None}
        outer = f.take("rope_theta", 10000.0)
        theta = f.check_number("rope_theta", given.pop("rope_theta", outer), positive=True)
        kinds = [given.pop(name) for name in ("rope_type", "type") if name in given] or ["default"]
        kind = kinds[0]
        if any(type(k) is not str or k not in _ROPE_FIELDS or k != kind for k in kinds):
            f.wrong(f"RoPE of type {shown(kinds)} is not supported; supported: {[*_ROPE_FIELDS]}")
        elif set(given) != set(_ROPE_FIELDS[kind]):
            f.wrong(
                f"RoPE of type {kind!r} takes {[*_ROPE_FIELDS[kind]]}, found {shown(sorted(given))}"
            )
        else:
            values: dict[str, Any] = {
                attribute: f.check_number(f"RoPE's {name}", given[name], positive=True)
                for name, attribute in _ROPE_FIELDS[kind].items()
            }
            if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
                f.wrong("RoPE's high_freq_factor is not above its low_freq_factor")
            if "original_positions" in values:
                values["original_positions"] = int(values["original_positions"])
            return cls(theta=theta, scaling=kind, **values)
        return cls(theta=theta)

    def to_hf(self) -> dict[str, Any]:
        """The `rope_parameters` field of transformers 5."""
        fields: dict[str, Any] = {"rope_type": self.scaling, "rope_theta": self.theta}
        if self.scaling != "default":
            fields["factor"] = self.factor
        if self.scaling == "llama3":
            fields["low_freq_factor"] = self.low_freq_factor
            fields["high_freq_factor"] = self.high_freq_factor
            fields["original_max_position_embeddings"] = self.original_positions
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a LLaMA model; P is the longest prompt."""

    family: ClassVar[str] = "llama"
    mlp_matrices: ClassVar[int] = 3
    L: int
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int
    P: int
    norm_eps: float = 1e-6
    rope: Rope = Rope()
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    @property
    def sizes(self) -> Mapping[str, int]:
        """Length of every axis letter."""
        joined = {"I": self.N * self.H, "J": self.K * self.H}
        return {c: getattr(self, c) for c in "LDNKHFVP"} | joined

    @property
    def width(self) -> int:
        """Width of a sentence's vector."""
        return self.D

    @property
    def dropout(self) -> float:
        """Rate of the base model's own dropout: LLaMA has none."""
        return 0.0

    def with_dropout(self, rate: float) -> LlamaConfig:
        """Return the config with another rate of the model's dropout; LLaMA has none."""
        return self

    def layers(self, depth: int) -> Layers:
        """Return what the first `depth` layers are, but for their weights."""
        return Layers(depth, self.D, self.H, ropes=(self.rope,))

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> LlamaConfig:
        """Read the fields of a `config.json`.

        Raises: UserError that names every field that is missing, unknown or out of range.
        """
        f = Fields(fields)
        f.expect("hidden_act", "silu")
        f.expect("pretraining_tp", *range(1, 65))  # a way to split products, equal but for rounding
        f.expect("attention_dropout", 0.0)
        f.expect("rope_interleaved", False)
        D, N = f.integer("hidden_size"), f.integer("num_attention_heads")
        K = f.integer("num_key_value_heads", N)
        if fields.get("head_dim") is None:
            f.require_multiple("hidden_size", "num_attention_heads")
        f.require_multiple("num_attention_heads", "num_key_value_heads")
        config: dict[str, Any] = dict(
            D=D,
            N=N,
            K=K,
            H=f.integer("head_dim", D // N or 1),
            L=f.integer("num_hidden_layers", most=MOST_LAYERS),
            F=f.integer("intermediate_size"),
            V=f.integer("vocab_size"),
            P=f.integer("max_position_embeddings", 2048),
            norm_eps=f.number("rms_norm_eps", 1e-6),
            rope=Rope.from_hf(f),
            attention_bias=f.flag("attention_bias", False),
            mlp_bias=f.flag("mlp_bias", False),
            tied=f.flag("tie_word_embeddings", False),
        )
        if config["H"] % 2:
            f.wrong(f"head_dim = {config['H']} is odd; RoPE turns pairs")
        f.finish()
        return cls(**config)

    def to_hf(self) -> dict[str, Any]:
        """Fields of the `config.json` that transformers reads back as this model."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": self.D,
            "num_hidden_layers": self.L,
            "num_attention_heads": self.N,
            "num_key_value_heads": self.K,
            "head_dim": self.H,
            "intermediate_size": self.F,
            "vocab_size": self.V,
            "max_position_embeddings": self.P,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": self.rope.to_hf(),
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tied,
        }


def make_embedding(config: LlamaConfig, make: nn.Placeholders) -> nn.Embedding:
    """Return the word embedding."""
    return nn.Embedding(make)


def make_final_norm(config: LlamaConfig, make: nn.Placeholders) -> nn.RMSNorm:
    """Return the final norm."""
    return nn.RMSNorm(make, eps=config.norm_eps)


class Block(nnx.Module):
    """Attention and gated feed-forward, each with a norm before it and a residual."""

    def __init__(self, config: LlamaConfig, make: nn.Placeholders):
        self.attention_norm = nn.RMSNorm(make, eps=config.norm_eps)
        self.attention = nn.Attention(make, bias=config.attention_bias)
        self.mlp_norm = nn.RMSNorm(make, eps=config.norm_eps)
        self.mlp = nn.GatedMlp(make, jax.nn.silu, bias=config.mlp_bias)

    def __call__(
        self, x: Saved, context: AttentionContext, prefix: KeysValues | None
    ) -> tuple[Saved, tuple[jax.Array, jax.Array]]:
        """Return the output of the context's queries, and the keys and values of every token."""
        with jax.named_scope("attention"):
            y_BTD, x_BTD = self.attention_norm.fork(x, context.tape)
            y_BQD, kv = self.attention(y_BTD, context, prefix)
            x = nn.residual(context.queries(x_BTD), y_BQD, context.tape)
        with jax.named_scope("mlp"):
            y_BQD, x_BQD = self.mlp_norm.fork(x, context.tape)
            return nn.residual(x_BQD, self.mlp(y_BQD, context)), kv

    def keys_values(
        self, x_BTD: jax.Array, context: AttentionContext
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values alone, for the last layer of a prefix."""
        return self.attention.keys_values(self.attention_norm(x_BTD), context)


def _linear(source: str, target: str, dims: str) -> tuple[TensorMap, TensorMap]:
    out = dims[: dims.index(")") + 1] if dims.startswith("(") else dims[0]
    return (
        TensorMap(f"layers.{{l}}.{source}.weight", f"block.{target}.w", dims),
        TensorMap(
            f"layers.{{l}}.{source}.bias", f"block.{target}.b", f"{out} -> {out.strip('()')}"
        ),
    )


WEIGHTS: Final[tuple[TensorMap, ...]] = (
    TensorMap("embed_tokens.weight", "embedding.tokens", "V D -> V D"),
    TensorMap("layers.{l}.input_layernorm.weight", "block.attention_norm.scale", "D -> D"),
    *_linear("self_attn.q_proj", "attention.q", "(N H) D -> N H D"),
    *_linear("self_attn.k_proj", "attention.k", "(K H) D -> K H D"),
    *_linear("self_attn.v_proj", "attention.v", "(K H) D -> K H D"),
    *_linear("self_attn.o_proj", "attention.o", "D I -> D I"),
    TensorMap("layers.{l}.post_attention_layernorm.weight", "block.mlp_norm.scale", "D -> D"),
    *_linear("mlp.gate_proj", "mlp.gate", "F D -> F D"),
    *_linear("mlp.up_proj", "mlp.up", "F D -> F D"),
    *_linear("mlp.down_proj", "mlp.down", "D F -> D F"),
    TensorMap("norm.weight", "final_norm.scale", "D -> D"),
)
ALIAS: Final = {"embed_tokens.weight": "lm_head.weight"}
IGNORED: Final = (r"lm_head\.weight", r"(.+\.)?rotary_emb\.inv_freq")
