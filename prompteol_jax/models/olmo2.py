"""OLMo 2 (Team OLMo 2025): LLaMA with norms after attention and feed-forward, not before them.

Queries and keys have an RMS norm over all their heads joined.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

import jax
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.models import llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.llama import LlamaConfig, norm_of, read_shape
from prompteol_jax.models.rope import read_rope
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext
from prompteol_jax.ops.scan import Saved
from prompteol_jax.weights.mapping import TensorMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo2Config(LlamaConfig):
    """The shape of an OLMo 2 model."""

    family: ClassVar[str] = "olmo2"
    architecture: ClassVar[str] = "Olmo2ForCausalLM"

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        shape = read_olmo_shape(f)
        return shape | {"rope": read_rope(f, shape["H"], shape["P"])}

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        own = {"hidden_act": "silu", "attention_bias": self.attention_bias}
        return {**self.shape_to_hf(), **own}


def read_olmo_shape(f: Fields) -> dict[str, Any]:
    """Read what the configs of OLMo 2 and 3 have in common."""
    f.expect("hidden_act", "silu")
    return read_shape(f, norm_eps=1e-5) | dict(
        attention_bias=f.flag("attention_bias", False), tied=f.flag("tie_word_embeddings", False)
    )


class Block(nnx.Module):
    """Attention and gated feed-forward, each with a norm after it and a residual."""

    def __init__(self, config: Olmo2Config, make: nn.Placeholders):
        self.attention = nn.Attention(
            make, bias=config.attention_bias, joined_norm_eps=config.norm_eps
        )
        self.attention_post_norm = nn.RMSNorm(make, eps=config.norm_eps)
        self.mlp = nn.GatedMlp(make, jax.nn.silu)
        self.mlp_post_norm = nn.RMSNorm(make, eps=config.norm_eps)

    def __call__(
        self, x: Saved, context: AttentionContext, prefix: KeysValues | None
    ) -> tuple[Saved, tuple[jax.Array, jax.Array]]:
        """Return the output of the context's queries, and the keys and values of every token."""
        tape = context.tape
        with jax.named_scope("attention"):
            y_BQD, kv = self.attention(x.value, context, prefix)
            y_BQD = self.attention_post_norm(tape.save(y_BQD).value, tape)
            x = nn.residual(context.queries(x.value), y_BQD, tape)
        with jax.named_scope("mlp"):
            y_BQD = self.mlp(x.value, context)
            return nn.residual(x.value, self.mlp_post_norm(tape.save(y_BQD).value, tape)), kv

    def keys_values(
        self, x_BTD: jax.Array, context: AttentionContext
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values alone, for the last layer of a prefix."""
        return self.attention.keys_values(x_BTD, context)


make_embedding, make_final_norm = llama.make_embedding, llama.make_final_norm
WEIGHTS: Final[tuple[TensorMap, ...]] = (
    llama.EMBEDDING,
    *llama.ATTENTION,
    norm_of("self_attn.q_norm", "attention.q_norm", "I"),
    norm_of("self_attn.k_norm", "attention.k_norm", "J"),
    norm_of("post_attention_layernorm", "attention_post_norm"),
    *llama.MLP,
    norm_of("post_feedforward_layernorm", "mlp_post_norm"),
    llama.FINAL_NORM,
)
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
