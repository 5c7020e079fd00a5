"""Gemma 2 (Gemma Team 2024): Gemma with norms after attention and feed-forward, and capped scores.

Every second layer has a sliding window, the first one included.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

import jax
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.models import gemma, llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.gemma import GemmaConfig, make_norm, read_gemma_shape
from prompteol_jax.models.llama import norm_of
from prompteol_jax.models.rope import read_rope
from prompteol_jax.models.windows import layer_types, periodic, read_windows, widest
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.scan import Saved
from prompteol_jax.weights.mapping import TensorMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """The shape of a Gemma 2 model.

    Attributes:
        query_scalar: scores are scaled by its inverse square root.
        score_cap: bound c of the scores, c * tanh(score / c); None for no bound.
    """

    family: ClassVar[str] = "gemma2"
    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    query_scalar: int = 256
    score_cap: float | None = 50.0
    logit_cap: float | None = 30.0

    @property
    def spec(self) -> AttentionSpec:
        """Scale and cap of the scores."""
        return AttentionSpec(self.query_scalar**-0.5, self.score_cap)

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("use_bidirectional_attention", False)
        f.expect("hidden_act", "gelu_pytorch_tanh")
        shape = read_gemma_shape(f)
        L, window = shape["L"], f.integer_or_null("sliding_window", 4096)
        return shape | dict(
            rope=read_rope(f, shape["H"], shape["P"]),
            window_L=read_windows(f, L, window, periodic(2, L)),
            query_scalar=f.integer("query_pre_attn_scalar", 256),
            score_cap=f.number_or_null("attn_logit_softcapping", cls.score_cap),
            logit_cap=f.number_or_null("final_logit_softcapping", cls.logit_cap),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        return {
            **self.shape_to_hf(),
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": self.attention_bias,
            "query_pre_attn_scalar": self.query_scalar,
            "attn_logit_softcapping": self.score_cap,
            "final_logit_softcapping": self.logit_cap,
            "sliding_window": widest(self.window_L) or self.P,
            "layer_types": layer_types(self.window_L, self.L),
        }


class Block(nnx.Module):
    """Attention and gated feed-forward, each with a norm before and after it, and a residual."""

    def __init__(self, config: Gemma2Config, make: nn.Placeholders):
        self.attention_norm = make_norm(config, make)
        self.attention = nn.Attention(make, spec=config.spec, bias=config.attention_bias)
        self.attention_post_norm = make_norm(config, make)
        self.mlp_norm = make_norm(config, make)
        self.mlp = nn.GatedMlp(make, gemma.gelu)
        self.mlp_post_norm = make_norm(config, make)

    def __call__(
        self, x: Saved, context: AttentionContext, prefix: KeysValues | None
    ) -> tuple[Saved, tuple[jax.Array, jax.Array]]:
        """Return the output of the context's queries, and the keys and values of every token."""
        tape = context.tape
        with jax.named_scope("attention"):
            y_BTD, x_BTD = self.attention_norm.fork(x, tape)
            y_BQD, kv = self.attention(y_BTD, context, prefix)
            y_BQD = self.attention_post_norm(tape.save(y_BQD).value, tape)
            x = nn.residual(context.queries(x_BTD), y_BQD, tape)
        with jax.named_scope("mlp"):
            y_BQD, x_BQD = self.mlp_norm.fork(x, tape)
            y_BQD = self.mlp(y_BQD, context)
            return nn.residual(x_BQD, self.mlp_post_norm(tape.save(y_BQD).value, tape)), kv

    def keys_values(
        self, x_BTD: jax.Array, context: AttentionContext
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values alone, for the last layer of a prefix."""
        return self.attention.keys_values(self.attention_norm(x_BTD), context)


make_embedding, make_final_norm = gemma.make_embedding, make_norm
WEIGHTS: Final[tuple[TensorMap, ...]] = (
    llama.EMBEDDING,
    norm_of("input_layernorm", "attention_norm"),
    *llama.ATTENTION,
    norm_of("post_attention_layernorm", "attention_post_norm"),
    norm_of("pre_feedforward_layernorm", "mlp_norm"),
    *llama.MLP,
    norm_of("post_feedforward_layernorm", "mlp_post_norm"),
    llama.FINAL_NORM,
)
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
