"""A family of your own in one file: LLaMA's parts, with attention and feed-forward in parallel.

    python examples/own_family.py

The block computes x + attention(norm(x)) + mlp(norm(x)), as GPT-J and PaLM do.
`docs/guides/add-a-family.md` explains every member.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar, Final

import jax
from flax import nnx

from prompteol_jax import PROMPTEOL, Embedder, nn
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import FAMILIES, initial, llama, tiny
from prompteol_jax.pretrained.load import Pretrained
from prompteol_jax.weights.mapping import TensorMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig(llama.LlamaConfig):
    """The shape of a model of this family: LLaMA's fields."""

    family: ClassVar[str] = "parallel"

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of its `config.json`."""
        return {**super().to_hf(), "model_type": self.family, "architectures": ["Parallel"]}


class Block(nnx.Module):
    """Attention and gated feed-forward of the same norm, added to the residual together."""

    def __init__(self, config: ParallelConfig, make: nn.Placeholders):
        self.norm = nn.RMSNorm(make, eps=config.norm_eps)
        self.attention = nn.Attention(make)
        self.mlp = nn.GatedMlp(make, jax.nn.gelu)

    def __call__(self, x, context, prefix):
        """Return the output of the context's queries, and the keys and values of every token."""
        y_BTD, x_BTD = self.norm.fork(x, context.tape)
        attended_BQD, keys_values = self.attention(y_BTD, context, prefix)
        fed_BQD = self.mlp(context.queries(y_BTD), context)
        return nn.residual(context.queries(x_BTD), attended_BQD + fed_BQD), keys_values

    def keys_values(self, x_BTD, context):
        """Return keys and values alone, for the last layer of a prefix."""
        return self.attention.keys_values(self.norm(x_BTD), context)


make_embedding = llama.make_embedding
make_final_norm = llama.make_final_norm

# A tensor of the file, the leaf of the model, and their axes.
WEIGHTS: Final = (
    TensorMap("embed_tokens.weight", "embedding.tokens", "V D -> V D"),
    TensorMap("layers.{l}.norm.weight", "block.norm.scale", "D -> D"),
    TensorMap("layers.{l}.attention.q.weight", "block.attention.q.w", "(N H) D -> N H D"),
    TensorMap("layers.{l}.attention.k.weight", "block.attention.k.w", "(K H) D -> K H D"),
    TensorMap("layers.{l}.attention.v.weight", "block.attention.v.w", "(K H) D -> K H D"),
    TensorMap("layers.{l}.attention.o.weight", "block.attention.o.w", "D I -> D I"),
    TensorMap("layers.{l}.mlp.gate.weight", "block.mlp.gate.w", "F D -> F D"),
    TensorMap("layers.{l}.mlp.up.weight", "block.mlp.up.w", "F D -> F D"),
    TensorMap("layers.{l}.mlp.down.weight", "block.mlp.down.w", "D F -> D F"),
    TensorMap("norm.weight", "final_norm.scale", "D -> D"),
)
ALIAS: Final = {"embed_tokens.weight": "lm_head.weight"}
IGNORED: Final = (r"lm_head\.weight",)


def main() -> tuple[int, ...]:
    """Register the family, draw a random model, encode two texts; return the vectors' shape."""
    FAMILIES[ParallelConfig.family] = (ParallelConfig, sys.modules[__name__])
    V = tiny.VOCABULARY_SIZE
    config = ParallelConfig(L=3, D=64, N=4, K=2, H=16, F=128, V=V, P=256, tied=True)
    mesh = make_mesh((1, 1))
    decoder = initial.random_decoder(config, mesh, jax.random.key(0), dtype="float32")
    model = Pretrained("parallel", None, config, tiny.tiny_tokenizer(), decoder, mesh)
    vectors = Embedder(model, PROMPTEOL).encode(["A man plays a guitar.", "It rains."])
    sys.stdout.write(f"{config.family}: vectors of shape {vectors.shape}\n")
    return vectors.shape


if __name__ == "__main__":
    main()
