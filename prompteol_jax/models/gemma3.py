"""Gemma 3, text (Gemma Team 2025): Gemma 2 with norms of heads in place of capped scores.

Five layers with a sliding window follow each other, then one without; each type has its rope.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from prompteol_jax import nn
from prompteol_jax.models import gemma, gemma2, llama
from prompteol_jax.models.config import Fields
from prompteol_jax.models.context import Layers
from prompteol_jax.models.gemma import read_gemma_shape
from prompteol_jax.models.gemma2 import Gemma2Config
from prompteol_jax.models.qwen3 import HEAD_NORMS
from prompteol_jax.models.rope import Rope, read_ropes_by_type
from prompteol_jax.models.windows import FULL, SLIDING, periodic, read_windows
from prompteol_jax.weights.mapping import TensorMap

_ROPES: Final = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """The shape of a Gemma 3 text model.

    Attributes:
        rope: of layers without a window; local_rope: of those with one.
        causal: tokens see none after themselves; not in EmbeddingGemma.
    """

    family: ClassVar[str] = "gemma3_text"
    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    rope: Rope = Rope(theta=1e6)
    local_rope: Rope = Rope(theta=1e4)
    causal: bool = True
    score_cap: float | None = None
    logit_cap: float | None = None

    def layers(self, depth: int) -> Layers:
        """Return what the first `depth` layers are, but for their weights."""
        layers = super().layers(depth).with_local_rope(self.local_rope)
        return dataclasses.replace(layers, causal=self.causal)

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        f.expect("hidden_act", "gelu_pytorch_tanh")
        f.expect("attn_logit_softcapping", None)
        f.ignore("_sliding_window_pattern")  # `layer_types` says it
        shape = read_gemma_shape(f, P=131072)
        L, window = shape["L"], f.integer_or_null("sliding_window", 4096)
        causal = not f.flag("use_bidirectional_attention", False)
        if window is not None and not causal:
            window = window // 2 + 1  # to each side
        period = f.integer("sliding_window_pattern", 6)
        rope, local_rope = read_ropes_by_type(f, shape["H"], shape["P"], _ROPES)
        return shape | dict(
            rope=rope,
            local_rope=local_rope,
            causal=causal,
            window_L=read_windows(f, L, window, periodic(period, L)),
            query_scalar=f.integer("query_pre_attn_scalar", 256),
            logit_cap=f.number_or_null("final_logit_softcapping", cls.logit_cap),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        ropes = {FULL: self.rope.to_hf(), SLIDING: self.local_rope.to_hf()}
        fields = {**super().to_hf(), "rope_parameters": ropes}
        if not self.causal:
            fields["sliding_window"] = 2 * (fields["sliding_window"] - 1)
        return {**fields, "use_bidirectional_attention": not self.causal}


class Block(gemma2.Block):
    """Gemma 2's block, with norms of the heads of q and k."""

    def __init__(self, config: Gemma3Config, make: nn.Placeholders):
        super().__init__(config, make)
        self.attention = nn.Attention(
            make,
            spec=config.spec,
            bias=config.attention_bias,
            head_norm_eps=config.norm_eps,
            plus_one=True,
        )


make_embedding, make_final_norm = gemma.make_embedding, gemma.make_norm
WEIGHTS: Final[tuple[TensorMap, ...]] = (*gemma2.WEIGHTS, *HEAD_NORMS)
ALIAS: Final = llama.ALIAS
IGNORED: Final = llama.IGNORED
