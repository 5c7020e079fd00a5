"""OLMo 3 (Team OLMo 2025): OLMo 2's block, with a sliding window in three layers of four.

Layers with a window may have another rope.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from prompteol_jax.models import olmo2
from prompteol_jax.models.config import Fields
from prompteol_jax.models.context import Layers
from prompteol_jax.models.olmo2 import Olmo2Config, read_olmo_shape
from prompteol_jax.models.rope import Rope, read_ropes_by_type
from prompteol_jax.models.windows import FULL, SLIDING, layer_types, periodic, read_windows, widest

# transformers reads `rope_theta` for the layers without a window alone.
_ROPES: Final = {FULL: ("rope_theta", 5e5), SLIDING: ("", 5e5)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Olmo3Config(Olmo2Config):
    """The shape of an OLMo 3 model.

    Attributes:
        rope: of layers without a window; local_rope: of those with one.
    """

    family: ClassVar[str] = "olmo3"
    architecture: ClassVar[str] = "Olmo3ForCausalLM"
    rope: Rope = Rope(theta=5e5)
    local_rope: Rope = Rope(theta=5e5)

    def layers(self, depth: int) -> Layers:
        """Return what the first `depth` layers are, but for their weights."""
        return super().layers(depth).with_local_rope(self.local_rope)

    @classmethod
    def read(cls, f: Fields) -> dict[str, Any]:
        """Read the fields of this family."""
        shape = read_olmo_shape(f)
        L, window = shape["L"], f.integer_or_null("sliding_window", 4096)
        rope, local_rope = read_ropes_by_type(f, shape["H"], shape["P"], _ROPES)
        window_L = read_windows(f, L, window, periodic(4, L))
        return shape | dict(rope=rope, local_rope=local_rope, window_L=window_L)

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of the `config.json` that transformers reads back as this model."""
        return {
            **super().to_hf(),
            "rope_parameters": {FULL: self.rope.to_hf(), SLIDING: self.local_rope.to_hf()},
            "sliding_window": widest(self.window_L) or self.P,
            "layer_types": layer_types(self.window_L, self.L),
        }


make_embedding, make_final_norm, Block = olmo2.make_embedding, olmo2.make_final_norm, olmo2.Block
WEIGHTS: Final = olmo2.WEIGHTS
ALIAS: Final = olmo2.ALIAS
IGNORED: Final = olmo2.IGNORED
