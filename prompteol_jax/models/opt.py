"""OPT (Zhang et al. 2022): learned positions, ReLU, biases everywhere; 350m is post-norm.

Everything that is peculiar to the family is here: config, modules, weight table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import jax
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.mesh import constrain
from prompteol_jax.models.config import MOST_LAYERS, Fields
from prompteol_jax.models.decoder import View, project_heads, project_keys_values
from prompteol_jax.ops import attention, dropout, scan
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
        config = dict(
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


class Stem(nnx.Module):
    """Word embedding, projected where its width is not D, plus learned positions."""

    def __init__(self, config: OptConfig, make: nn.Placeholders):
        self.tokens = make.matrix("VE")
        self.positions = make.matrix("PD")
        self.project_in = nn.Linear("BTE,DE->BTD", make) if config.E != config.D else None

    def __call__(
        self, ids_BT: jax.Array, place_BT: jax.Array, keys: dropout.Keys | None
    ) -> jax.Array:
        x = nn.lookup(self.tokens[...], ids_BT)
        if self.project_in is not None:
            x = self.project_in(x)
        return x + nn.lookup(self.positions[...], place_BT + POSITION_OFFSET)

    def angles(self, place_BT: jax.Array) -> None:
        """OPT turns nothing."""


class Block(nnx.Module):
    """Attention and feed-forward, each with a residual and a norm before it (350m: behind it)."""

    def __init__(self, config: OptConfig, make: nn.Placeholders):
        self.attention_norm = nn.LayerNorm(make)
        self.q = nn.Linear("BTD,NHD->BTNH", make, bias=True)
        self.k = nn.Linear("BTD,KHD->BTKH", make, bias=True)
        self.v = nn.Linear("BTD,KHD->BTKH", make, bias=True)
        self.o = nn.Linear("BTI,DI->BTD", make, bias=True)
        self.mlp_norm = nn.LayerNorm(make)
        self.up = nn.Linear("BTD,FD->BTF", make, bias=True)
        self.down = nn.Linear("BTF,DF->BTD", make, bias=True)
        self.pre_norm = config.pre_norm
        self.rate = config.dropout

    def __call__(
        self, x_BTD: jax.Array, view: View, prefix: tuple | None, keys: dropout.Keys | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The block's output for the view's queries, and the keys and values of every token."""
        *own, rest = dropout.split_keys(keys, 3)
        query_keys = dropout.split_keys(view.query_keys(rest), 6)
        with jax.named_scope("attention"):
            y_BTD = x_BTD
            if self.pre_norm:
                y_BTD, x_BTD = self.attention_norm.beside(x_BTD)
            q_BQNH, kv = project_heads(self, y_BTD, view, query_keys[0], own)
            x_BQD = view.queries(x_BTD)
            y_BQNH = attention.attend(
                q_BQNH, *kv, view.mask_BQT, prefix, view.real_C, view.start_BT, view.head or 0
            )
            y_BQI = attention.join_heads(y_BQNH)
            x_BQD = x_BQD + dropout.drop(self.o(y_BQI, query_keys[1]), query_keys[2], self.rate)
            x_BQD = scan.keep(constrain(x_BQD, "BQD"))
            if not self.pre_norm:
                x_BQD = self.attention_norm(x_BQD)
        with jax.named_scope("mlp"):
            y_BQD = x_BQD
            if self.pre_norm:
                y_BQD, x_BQD = self.mlp_norm.beside(x_BQD)
            y_BQF = scan.relu(constrain(self.up(y_BQD, query_keys[3]), "BQF"))
            x_BQD = x_BQD + dropout.drop(self.down(y_BQF, query_keys[4]), query_keys[5], self.rate)
            x_BQD = constrain(x_BQD, "BQD")
            x_BQD = x_BQD if self.pre_norm else self.mlp_norm(scan.keep(x_BQD))
        return x_BQD, kv

    def keys_values(
        self, x_BTD: jax.Array, view: View, keys: dropout.Keys | None
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values alone, for the last layer of a prefix."""
        *own, _ = dropout.split_keys(keys, 3)
        y_BTD = self.attention_norm(x_BTD) if self.pre_norm else x_BTD
        return project_keys_values(self, y_BTD, own)


class Finish(nnx.Module):
    """Final norm (not in 350m) and projection to the embedding width (only in 350m)."""

    def __init__(self, config: OptConfig, make: nn.Placeholders):
        self.norm = nn.LayerNorm(make) if config.pre_norm and config.final_norm else None
        self.project_out = nn.Linear("BTD,ED->BTE", make) if config.E != config.D else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        return x_BTD if self.project_out is None else self.project_out(x_BTD)


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
    TensorMap("decoder.embed_tokens.weight", "stem.tokens", "V E -> V E"),
    TensorMap("decoder.embed_positions.weight", "stem.positions", "P D -> P D"),
    TensorMap("decoder.project_in.weight", "stem.project_in.w", "D E -> D E"),
    *_norm("decoder.layers.{l}.self_attn_layer_norm", "block.attention_norm"),
    *_affine("self_attn.q_proj", "q", "(N H) D -> N H D", "(N H) -> N H"),
    *_affine("self_attn.k_proj", "k", "(K H) D -> K H D", "(K H) -> K H"),
    *_affine("self_attn.v_proj", "v", "(K H) D -> K H D", "(K H) -> K H"),
    *_affine("self_attn.out_proj", "o", "D I -> D I", "D -> D"),
    *_norm("decoder.layers.{l}.final_layer_norm", "block.mlp_norm"),
    *_affine("fc1", "up", "F D -> F D", "F -> F"),
    *_affine("fc2", "down", "D F -> D F", "D -> D"),
    *_norm("decoder.final_layer_norm", "finish.norm"),
    TensorMap("decoder.project_out.weight", "finish.project_out.w", "E D -> E D"),
)
ALIAS: Final = {"decoder.embed_tokens.weight": "lm_head.weight"}
IGNORED: Final = (r"lm_head\.weight", r"decoder\.version")
