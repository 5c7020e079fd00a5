"""LLaMA 1, 2 and 3 (Touvron et al. 2023; Llama Team 2024): RMSNorm, RoPE, SwiGLU, grouped heads.

The family's config, modules and weight table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import jax
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.models.config import MOST_LAYERS, Fields
from prompteol_jax.models.context import Layers
from prompteol_jax.models.rope import Rope, read_rope
from prompteol_jax.models.windows import Windows
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext
from prompteol_jax.ops.scan import Saved
from prompteol_jax.weights.mapping import TensorMap


def read_shape(
    f: Fields, *, H: int | None = None, P: int = 2048, norm_eps: float = 1e-6
) -> dict[str, Any]:
    """Read what the configs of LLaMA and of families like it have in common.

    Args:
        H, P, norm_eps: the family's defaults; by default heads join to D features.
    """
    f.expect("attention_dropout", 0.0)
    f.require_multiple("num_attention_heads", "num_key_value_heads")
    D, N = f.integer("hidden_size"), f.integer("num_attention_heads")
    if H is None and not f.has("head_dim"):
        f.require_multiple("hidden_size", "num_attention_heads")
    return dict(
        L=f.integer("num_hidden_layers", most=MOST_LAYERS),
        D=D,
        N=N,
        K=f.integer("num_key_value_heads", N),
        H=f.integer("head_dim", H or D // N or 1),
        F=f.integer("intermediate_size"),
        V=f.integer("vocab_size"),
        P=f.integer("max_position_embeddings", P),
        norm_eps=f.number("rms_norm_eps", norm_eps),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a LLaMA model, or of one of a family like it.

    Attributes:
        P: longest prompt.
        window_L: number of last tokens that each layer attends to, None for all of them; None
            where no layer has a window, as in LLaMA.
        logit_cap: bound c of the LM head's logits, c * tanh(logit / c); None for no bound.
    """

    family: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
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
    window_L: Windows | None = None
    logit_cap: float | None = None

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
        window_L = self.window_L and self.window_L[:depth]
        return Layers(depth, self.D, self.H, self.F, ropes=(self.rope,), window_L=window_L)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> LlamaConfig:
        """Read the fields of a `config.json`.

        Raises: UserError that names every field that is missing, unknown or out of range.
        """
        f = Fields(fields)
        config = cls.read(f)
        f.finish()
        return cls(**config)

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("hidden_act", "silu")
        f.expect("pretraining_tp", *range(1, 65))  # a way to split products, equal but for rounding
        f.expect("rope_interleaved", False)
        shape = read_shape(f)
        return shape | dict(
            rope=read_rope(f, shape["H"], shape["P"]),
            attention_bias=f.flag("attention_bias", False),
            mlp_bias=f.flag("mlp_bias", False),
            tied=f.flag("tie_word_embeddings", False),
        )

    def to_hf(self) -> dict[str, Any]:
        """Fields of the `config.json` that transformers reads back as this model."""
        biases = {"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias}
        return {**self.shape_to_hf(), **biases, "hidden_act": "silu"}

    def shape_to_hf(self) -> dict[str, Any]:
        """Return the fields that `read_shape` reads, and those of rope and tied heads."""
        return {
            "model_type": self.family,
            "architectures": [self.architecture],
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


EMBEDDING: Final = TensorMap("embed_tokens.weight", "embedding.tokens", "V D -> V D")
ATTENTION: Final[tuple[TensorMap, ...]] = (
    *_linear("self_attn.q_proj", "attention.q", "(N H) D -> N H D"),
    *_linear("self_attn.k_proj", "attention.k", "(K H) D -> K H D"),
    *_linear("self_attn.v_proj", "attention.v", "(K H) D -> K H D"),
    *_linear("self_attn.o_proj", "attention.o", "D I -> D I"),
)
MLP: Final[tuple[TensorMap, ...]] = (
    *_linear("mlp.gate_proj", "mlp.gate", "F D -> F D"),
    *_linear("mlp.up_proj", "mlp.up", "F D -> F D"),
    *_linear("mlp.down_proj", "mlp.down", "D F -> D F"),
)
FINAL_NORM: Final = TensorMap("norm.weight", "final_norm.scale", "D -> D")


def norm_of(source: str, target: str, dims: str = "D") -> TensorMap:
    """Return the row of a norm of each layer."""
    return TensorMap(f"layers.{{l}}.{source}.weight", f"block.{target}.scale", f"{dims} -> {dims}")


WEIGHTS: Final[tuple[TensorMap, ...]] = (
    EMBEDDING,
    norm_of("input_layernorm", "attention_norm"),
    *ATTENTION,
    norm_of("post_attention_layernorm", "mlp_norm"),
    *MLP,
    FINAL_NORM,
)
ALIAS: Final = {"embed_tokens.weight": "lm_head.weight"}
IGNORED: Final = (r"lm_head\.weight", r"(.+\.)?rotary_emb\.inv_freq")
