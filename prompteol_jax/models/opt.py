"""OPT (Zhang et al. 2022): learned positions, ReLU, biases everywhere; 350m is post-norm.

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
from prompteol_jax.ops import dropout
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext
from prompteol_jax.ops.scan import NONE, Saved, Tape
from prompteol_jax.weights.mapping import TensorMap

POSITION_OFFSET: Final = 2  # the first two rows of OPT's position table are never used


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptConfig:
    """The shape of an OPT model.

    Attributes:
        P: longest prompt, the position table's two unused rows not counted.
        E: width of the word embedding and of the final vector; 512 in OPT-350m, else D.
        pre_norm: norms before attention and feed-forward, and one at the end; False in OPT-350m.
        dropout: of both residual branches while training; OPT has none on the embedding sum.
    """

    family: ClassVar[str] = "opt"
    mlp_matrices: ClassVar[int] = 2
    L: int
    D: int
    N: int
    F: int
    V: int
    P: int
    E: int
    pre_norm: bool = True
    final_norm: bool = True
    dropout: float = 0.1

    @property
    def sizes(self) -> Mapping[str, int]:
        """Length of every axis letter; P counts the rows of the position table."""
        letters = {c: getattr(self, c) for c in "LDNFVE"}
        heads = {"H": self.D // self.N, "K": self.N, "I": self.D, "J": self.D}
        return letters | heads | {"P": self.P + POSITION_OFFSET}

    @property
    def width(self) -> int:
        """Width of a sentence's vector."""
        return self.E

    @property
    def tied(self) -> bool:
        """The language-model head is the word embedding."""
        return True

    @property
    def logit_cap(self) -> float | None:
        """Bound of the LM head's logits: OPT has none."""
        return None

    def with_dropout(self, rate: float) -> OptConfig:
        """Return the config with another rate of the model's dropout."""
        return dataclasses.replace(self, dropout=rate)

    def layers(self, depth: int) -> Layers:
        """Return what the first `depth` layers are, but for their weights."""
        return Layers(depth, self.D, self.D // self.N, self.F)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> OptConfig:
        """Read the fields of a `config.json`.

        Raises: UserError that names every field that is missing, unknown or out of range.
        """
        f = Fields(fields)
        f.expect("activation_function", "relu")
        f.expect("enable_bias", True)
        f.expect("layer_norm_elementwise_affine", True)
        f.expect("tie_word_embeddings", True)
        f.expect("attention_dropout", 0.0)
        f.expect("layerdrop", 0.0)
        f.ignore("init_std", "activation_dropout")
        D = f.integer("hidden_size")
        config: dict[str, Any] = dict(
            D=D,
            L=f.integer("num_hidden_layers", most=MOST_LAYERS),
            N=f.integer("num_attention_heads"),
            F=f.integer("ffn_dim"),
            V=f.integer("vocab_size"),
            P=f.integer("max_position_embeddings"),
            E=f.integer("word_embed_proj_dim", D),
            pre_norm=f.flag("do_layer_norm_before", True),
            final_norm=not f.flag("_remove_final_layer_norm", False),
            dropout=f.number("dropout", 0.1),
        )
        if config["dropout"] >= 1:
            f.wrong(f"dropout = {config['dropout']} is not below 1")
        f.require_multiple("hidden_size", "num_attention_heads")
        f.finish()
        return cls(**config)

    def to_hf(self) -> dict[str, Any]:
        """Fields of the `config.json` that transformers reads back as this model."""
        return {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "activation_function": "relu",
            "hidden_size": self.D,
            "num_hidden_layers": self.L,
            "num_attention_heads": self.N,
            "ffn_dim": self.F,
            "vocab_size": self.V,
            "max_position_embeddings": self.P,
            "word_embed_proj_dim": self.E,
            "do_layer_norm_before": self.pre_norm,
            "_remove_final_layer_norm": not self.final_norm,
            "dropout": self.dropout,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "tie_word_embeddings": True,
        }


class Embedding(nnx.Module):
    """Word embedding, projected where its width is not D, plus learned positions."""

    def __init__(self, config: OptConfig, make: nn.Placeholders):
        self.tokens = make.matrix("VE")
        self.positions = make.matrix("PD")
        self.project_in = nn.Linear("BTE,DE->BTD", make) if config.E != config.D else None
        self.fsdp = make.fsdp

    def __call__(self, ids_BT: jax.Array, position_BT: jax.Array) -> jax.Array:
        x = nn.look_up(self.tokens[...], "VE", ids_BT, fsdp=self.fsdp)
        if self.project_in is not None:
            x = self.project_in(x)
        row_BT = position_BT + POSITION_OFFSET
        return x + nn.look_up(self.positions[...], "PD", row_BT, fsdp=self.fsdp)


class Block(nnx.Module):
    """Attention and feed-forward, each with a residual and a norm before it (350m: after it)."""

    def __init__(self, config: OptConfig, make: nn.Placeholders):
        self.attention_norm = nn.LayerNorm(make)
        self.attention = nn.Attention(make, bias=True)
        self.mlp_norm = nn.LayerNorm(make)
        self.mlp = nn.PlainMlp(make, bias=True)
        self.pre_norm = config.pre_norm
        self.rate = config.dropout

    def __call__(
        self, x: Saved, context: AttentionContext, prefix: KeysValues | None
    ) -> tuple[Saved, tuple[jax.Array, jax.Array]]:
        """Return the output of the context's queries, and the keys and values of every token."""
        tape = context.tape
        with jax.named_scope("attention"):
            y_BTD, x_BTD = self._before(self.attention_norm, x, tape)
            y_BQD, kv = self.attention(y_BTD, context, prefix)
            y_BQD = dropout.drop(y_BQD, context.query_key(dropout.ATTENTION), self.rate)
            x = nn.residual(context.queries(x_BTD), y_BQD, tape)
            x = self._after(self.attention_norm, x, tape)
        with jax.named_scope("mlp"):
            y_BQD, x_BQD = self._before(self.mlp_norm, x, tape)
            y_BQD = self.mlp(y_BQD, context)
            y_BQD = dropout.drop(y_BQD, context.query_key(dropout.MLP), self.rate)
            x = nn.residual(x_BQD, y_BQD, NONE if self.pre_norm else tape)
            return self._after(self.mlp_norm, x, tape), kv

    def _before(self, norm: nn.LayerNorm, x: Saved, tape: Tape) -> tuple[jax.Array, jax.Array]:
        return norm.fork(x, tape) if self.pre_norm else (x.value, x.value)

    def _after(self, norm: nn.LayerNorm, x: Saved, tape: Tape) -> Saved:
        return x if self.pre_norm else Saved(norm(x.value, tape))

    def keys_values(
        self, x_BTD: jax.Array, context: AttentionContext
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values alone, for the last layer of a prefix."""
        y_BTD = self.attention_norm(x_BTD) if self.pre_norm else x_BTD
        return self.attention.keys_values(y_BTD, context)


class FinalNorm(nnx.Module):
    """Final norm (not in 350m) and projection to the embedding width (only in 350m)."""

    def __init__(self, config: OptConfig, make: nn.Placeholders):
        self.norm = nn.LayerNorm(make) if config.pre_norm and config.final_norm else None
        self.project_out = nn.Linear("BTD,ED->BTE", make) if config.E != config.D else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        return x_BTD if self.project_out is None else self.project_out(x_BTD)


make_embedding, make_final_norm = Embedding, FinalNorm


def _affine(source: str, target: str, dims: str, bias: str) -> tuple[TensorMap, TensorMap]:
    layer = "decoder.layers.{l}."
    return (
        TensorMap(f"{layer}{source}.weight", f"block.{target}.w", dims),
        TensorMap(f"{layer}{source}.bias", f"block.{target}.b", bias),
    )


def _norm(source: str, target: str) -> tuple[TensorMap, TensorMap]:
    return (
        TensorMap(f"{source}.weight", f"{target}.scale", "D -> D"),
        TensorMap(f"{source}.bias", f"{target}.bias", "D -> D"),
    )


WEIGHTS: Final[tuple[TensorMap, ...]] = (
    TensorMap("decoder.embed_tokens.weight", "embedding.tokens", "V E -> V E"),
    TensorMap("decoder.embed_positions.weight", "embedding.positions", "P D -> P D"),
    TensorMap("decoder.project_in.weight", "embedding.project_in.w", "D E -> D E"),
    *_norm("decoder.layers.{l}.self_attn_layer_norm", "block.attention_norm"),
    *_affine("self_attn.q_proj", "attention.q", "(N H) D -> N H D", "(N H) -> N H"),
    *_affine("self_attn.k_proj", "attention.k", "(K H) D -> K H D", "(K H) -> K H"),
    *_affine("self_attn.v_proj", "attention.v", "(K H) D -> K H D", "(K H) -> K H"),
    *_affine("self_attn.out_proj", "attention.o", "D I -> D I", "D -> D"),
    *_norm("decoder.layers.{l}.final_layer_norm", "block.mlp_norm"),
    *_affine("fc1", "mlp.up", "F D -> F D", "F -> F"),
    *_affine("fc2", "mlp.down", "D F -> D F", "D -> D"),
    *_norm("decoder.final_layer_norm", "final_norm.norm"),
    TensorMap("decoder.project_out.weight", "final_norm.project_out.w", "E D -> E D"),
)
ALIAS: Final = {"decoder.embed_tokens.weight": "lm_head.weight"}
IGNORED: Final = (r"lm_head\.weight", r"decoder\.version")
