"""Phi-3, 3.5 and 4 (Abdin et al. 2024): LLaMA's block; files with fused projections and LongRoPE.

A part of each head may be rotated, and all layers may have one sliding window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from prompteol_jax.models import llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.llama import LlamaConfig, norm_of, read_shape
from prompteol_jax.models.rope import LongRope, read_rope
from prompteol_jax.models.windows import every_layer, widest
from prompteol_jax.weights.mapping import TensorMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaConfig):
    """The shape of a Phi-3 or Phi-4 model."""

    family: ClassVar[str] = "phi3"
    architecture: ClassVar[str] = "Phi3ForCausalLM"

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("hidden_act", "silu")
        for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
            f.expect(name, False)
        for name in ("resid_pdrop", "embd_pdrop"):  # dropout of training
            f.expect(name, 0.0)
        for name in ("full_attn_mod", "interpolate_factor"):  # of no released code
            f.expect(name, 1)
        shape = read_shape(f, P=4096, norm_eps=1e-5)
        if shape["H"] * shape["N"] != shape["D"]:
            f.wrong("head_dim is not hidden_size / num_attention_heads")
        rope = read_rope(
            f,
            shape["H"],
            shape["P"],
            kinds=("default", "longrope"),
            alias=dict.fromkeys(("su", "yarn"), "longrope"),  # as in the first releases
            partial=True,
            original=f.integer("original_max_position_embeddings", 4096),
        )
        return shape | dict(
            rope=rope,
            tied=f.flag("tie_word_embeddings", False),
            window_L=every_layer(f.integer_or_null("sliding_window", None), shape["L"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        fields = {**self.shape_to_hf(), "hidden_act": "silu"}
        del fields["head_dim"]
        if isinstance(self.rope, LongRope):
            name = "original_max_position_embeddings"
            fields[name] = self.rope.original_max_position_embeddings
        # transformers' default is an id that a small vocabulary lacks.
        return {**fields, "sliding_window": widest(self.window_L), "pad_token_id": None}


make_embedding, make_final_norm, Block = llama.make_embedding, llama.make_final_norm, llama.Block


def _fused(source: str, target: str, dims: str) -> TensorMap:
    return TensorMap(f"layers.{{l}}.{source}.weight", f"block.{target}.w", dims)


WEIGHTS: Final[tuple[TensorMap, ...]] = (
    llama.EMBEDDING,
    norm_of("input_layernorm", "attention_norm"),
    _fused("self_attn.qkv_proj", "attention.q", "(N H)|J|J D -> N H D"),
    _fused("self_attn.qkv_proj", "attention.k", "I|(K H)|J D -> K H D"),
    _fused("self_attn.qkv_proj", "attention.v", "I|J|(K H) D -> K H D"),
    _fused("self_attn.o_proj", "attention.o", "D I -> D I"),
    norm_of("post_attention_layernorm", "mlp_norm"),
    _fused("mlp.gate_up_proj", "mlp.gate", "(F)|F D -> F D"),
    _fused("mlp.gate_up_proj", "mlp.up", "F|(F) D -> F D"),
    _fused("mlp.down_proj", "mlp.down", "D F -> D F"),
    llama.FINAL_NORM,
)
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
