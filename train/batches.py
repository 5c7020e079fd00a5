"""From triplets of text to packed ids on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompteol_jax import axes, distributed, packing
from prompteol_jax.tokens import Prompt
from train.data import Triplet
from train.step import Batch

_ROW = 64  # tokens of a row that sentences are packed into, unless one is longer
_ROWS = 16  # the number of rows is a multiple of this, so that few shapes are ever compiled


def row_shape(longest: int) -> tuple[int, int]:
    """Tokens of a row and the most sentences in it, where the longest has so many ids."""
    capacity = max(_ROW, -(-longest // 16) * 16)
    return capacity, capacity // 10


def row_multiple(data: int, chunks: int) -> int:
    """What the number of rows is a multiple of, on so many devices along data."""
    unit = data * chunks
    return -(-_ROWS // unit) * unit


@dataclasses.dataclass(frozen=True)
class Assembler:
    """Cuts, fills and packs the sentences of a batch.

    Attributes:
        cut: tokens that a sentence is cut to before it goes into the template.
        chunks: parts that the rows will be encoded in.
    """

    prompt: Prompt
    mesh: Mesh
    cut: int
    chunks: int

    def __call__(self, triplets: Sequence[Triplet]) -> tuple[Batch, np.ndarray, int]:
        """A global batch on the mesh, the prefix that its rows continue, and its real tokens.

        Where a sentence's ids do not begin with the shared prefix, the whole batch goes without.
        """
        roles = 2 if triplets[0].hard_neg is None else 3
        texts = [text for triplet in triplets for text in triplet[:roles]]
        prompts = self.prompt(self.prompt.tokenizer.cut(texts, self.cut))
        prefix_C, ids = self.prompt.prefix_C, prompts.ids
        if not prompts.shared.all():
            ids = [
                np.concatenate([prefix_C, own]) if shared else own
                for own, shared in zip(ids, prompts.shared, strict=True)
            ]
            prefix_C = prefix_C[:0]
        capacity, most = row_shape(max(map(len, ids)))
        multiple = row_multiple(self.mesh.shape["data"], self.chunks)
        rows, place_n = packing.pack(ids, capacity, most, multiple)
        place_B3 = place_n.reshape(len(triplets), roles)
        on_mesh = [distributed.to_global(x, axes.sharding("BT", x.shape, self.mesh)) for x in rows]
        whole = NamedSharding(self.mesh, PartitionSpec())
        batch = Batch(type(rows)(*on_mesh), distributed.to_global(place_B3, whole))
        return batch, prefix_C, sum(map(len, ids)) + len(prefix_C)
