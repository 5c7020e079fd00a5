"""From rows of text to a batch of packed ids on the mesh, always of the run's one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prompteol_jax.distributed import Share
from prompteol_jax.encoding import packing
from prompteol_jax.encoding.packing import Packed
from prompteol_jax.models.decoder import Rows
from train.data.batch_shape import BatchShape, balanced
from train.data.needs import needs_of
from train.data.sentences import Sentences
from train.step import TrainBatch


class CollatedBatch(NamedTuple):
    """A global batch on the mesh.

    Attributes:
        prefix_C: ids that precede all of its rows.
        sentences: number of sentences of the global batch.
        padding: share of its tokens that hold no sentence, in the rows of this process.
    """

    batch: TrainBatch
    prefix_C: np.ndarray
    sentences: int
    padding: float


@dataclasses.dataclass(frozen=True)
class Collator:
    """Tokenizes, distributes and packs the rows that this process feeds to its devices.

    Each shard along data packs its own triplets, with about as many tokens as the others of this
    process.

    Attributes:
        share: the shards along data that this process feeds.
        shape: the shape of every batch, see `choose_batch_shape`.
        needs: names of what the loss takes with the vectors.
        offsets: tokens before a sentence's last one at which the loss takes a vector.
    """

    sentences: Sentences
    share: Share
    shape: BatchShape
    needs: tuple[str, ...] = ()
    offsets: tuple[int, ...] = (0,)

    def __call__(self, triplets: Sequence[Any]) -> CollatedBatch:
        """Return the global batch, of which `triplets` are the rows that this process reads."""
        columns = len(self.sentences.columns)
        prefix_C, ids = self._ids(triplets)
        lengths_b3 = np.array([*map(len, ids)]).reshape(-1, columns)
        shards = balanced(lengths_b3.sum(1).tolist(), len(self.share.shards))
        numbers = self.share.index * len(triplets) + shards  # in the global batch
        parts = []
        for own, number_b in zip(shards, numbers, strict=True):
            sentences = [ids[columns * b + n] for b in own for n in range(columns)]
            packed = packing.pack(sentences, self.shape.tokens, self.shape.sentences, 1)
            needs = needs_of(self.needs, [triplets[b] for b in own], self.sentences.columns)
            shard = _shard(packed, number_b, self.shape.rows, columns)
            parts.append(_watching(shard, self.offsets)._replace(needs=needs))
        batch = TrainBatch(*map(self._on_mesh, zip(*parts, strict=True)))
        size = len(shards) * self.shape.rows * self.shape.tokens
        sentences = columns * len(triplets) * self.share.count
        return CollatedBatch(batch, prefix_C, sentences, 1 - float(lengths_b3.sum()) / size)

    def _ids(self, triplets: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the shared prefix, and what every prompt has after it."""
        ids, shared = self.sentences(triplets)
        prefix_C = self.sentences.prompt.prefix_C
        if self.shape.shared:
            return prefix_C, ids
        whole = [
            np.concatenate([prefix_C, own]) if begins_with_it else own
            for own, begins_with_it in zip(ids, shared, strict=True)
        ]
        return prefix_C[:0], whole

    def _on_mesh(self, parts: tuple) -> Any:
        return jax.tree.map(lambda *shards: self.share.to_mesh(np.concatenate(shards)), *parts)


def _shard(packed: Packed, number_b: np.ndarray, rows: int, columns: int) -> TrainBatch:
    """Return the rows of one shard, empty ones after them, and the numbers of its triplets."""
    assert packed.rows.start_BT is not None  # the rows are packed
    ids_BT, last_BS, start_BT = (
        np.pad(x, ((0, rows - len(x)), (0, 0))) for x in packed.rows if x is not None
    )
    sentence_BT = np.zeros_like(ids_BT)
    row_n, slot_n = np.divmod(packed.position_n, last_BS.shape[1])
    number_n = (columns * number_b[:, None] + np.arange(columns)).ravel()
    for number, row, last in zip(number_n, row_n, last_BS[row_n, slot_n], strict=True):
        sentence_BT[row, start_BT[row, last] : last + 1] = number
    slot_b3 = packed.position_n.reshape(-1, columns)
    return TrainBatch(Rows(ids_BT, last_BS, start_BT), sentence_BT, slot_b3, number_b)


def _watching(shard: TrainBatch, offsets: tuple[int, ...]) -> TrainBatch:
    """Return the shard with a vector at each offset from the end of every sentence."""
    P, last_BS = len(offsets), shard.rows.last_BS
    watched_BSP = np.maximum(last_BS[:, :, None] - np.array(offsets, last_BS.dtype), 0)
    slot_bP = P * shard.slot_B3[:, :, None] + np.arange(P, dtype=shard.slot_B3.dtype)
    rows = shard.rows._replace(last_BS=watched_BSP.reshape(len(last_BS), -1))
    return shard._replace(rows=rows, slot_B3=slot_bP.reshape(len(shard.slot_B3), -1))
