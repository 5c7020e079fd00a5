"""The flags that every command shares, from one dataclass."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from prompteol_jax.embedder import Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model encodes, how and where."""

    model: str
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny` (random weights)."""
    adapter: str | None = None
    """A PEFT folder or hub name, or the folder of a training run."""
    template: str = "eol"
    """A template's name (eol, eol-icl-2.7b, ...) or file."""
    mesh: str = "1x1"
    """DATAxMODEL: devices along each axis; a CPU simulates what it lacks."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations and weights; bfloat16 for encode, float32 for evaluation by default."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the matrices of linear layers in 4 or 8 bits."""
    layer: int | None = None
    """Take hidden_states[LAYER], negative from the end; by default the last, after its norm."""
    pooling: Literal["last", "mean"] = "last"
    """The last token's state, or the mean over all tokens of the prompt."""
    batch_tokens: int | None = None
    """Tokens computed at once over all devices; chosen for the device by default."""
    plan: Literal["fixed", "fitted", "packed"] = "fixed"
    """How sentences form batches: in fixed buckets of lengths, in buckets fitted to the texts, or
    packed, several in a row. Only `fixed` promises the same bits."""
    max_tokens: int | None = None
    """Largest number of ids of a prompt; longer texts are cut. By default the model's positions."""

    def load(self, default_dtype: str, mesh: Mesh | None = None) -> Embedder:
        """Load the model; see `Embedder.from_pretrained` for errors.

        Args:
            mesh: to load it onto, in the place of one over the first devices.
        """
        from prompteol_jax.embedder import Embedder

        return Embedder.from_pretrained(
            self.model,
            adapter=self.adapter,
            template=self.template,
            mesh=mesh or self.mesh,
            dtype=self.dtype or default_dtype,
            quantize=self.quantize,
            layer=self.layer,
            pooling=self.pooling,
            batch_tokens=self.batch_tokens,
            plan=self.plan,
            max_tokens=self.max_tokens,
        )
