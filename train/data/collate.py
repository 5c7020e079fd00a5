"""From triplets of text to packed ids on the mesh."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from prompteol_jax.distributed import Channel, Share
from prompteol_jax.encoding import packing
from prompteol_jax.encoding.packing import Packed
from prompteol_jax.models.decoder import Rows
from prompteol_jax.text.prompt import Prompt
from train.config import TrainConfig
from train.data.triplets import Batches, Triplet
from train.step import Batch, at_head

_ROW = 64  # tokens of a row that sentences are packed into, unless one is longer; not on a TPU


class CollatedBatch(NamedTuple):
    """A global batch on the mesh.

    Attributes:
        prefix_C: ids that all of its rows continue.
        padding: share of its tokens that no sentence holds.
    """

    batch: Batch
    prefix_C: np.ndarray
    padding: float


def row_shape(longest: int, C: int, mesh: Mesh) -> tuple[int, int]:
    """Tokens of a row and the most sentences in it, where the longest has so many ids.

    Short rows spend less on attention across sentences; a TPU has a kernel for rows of whole tiles,
    of which a prefix of C tokens at their head is a part.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "tpu":
        head = C if at_head(C, platform) else 0
        capacity, most = packing.row_shape(longest + head)
        return capacity - head, most
    capacity = max(_ROW, -(-longest // 16) * 16)
    return capacity, capacity // 10


@dataclasses.dataclass(frozen=True)
class Collator:
    """Cuts, fills and packs the sentences that this process feeds to its devices.

    Each shard along data packs triplets of its own, as many tokens as the others of this process.
    Processes only tell each other how long their longest sentence is and how many rows they fill,
    so that all of them make arrays of one shape.

    Attributes:
        share: the shards along data that this process feeds.
        channel: to the other processes, used in the order of the batches.
        cut: tokens that a sentence is cut to before it goes into the template.
        chunks: parts that the rows will be encoded in.
    """

    prompt: Prompt
    share: Share
    channel: Channel
    cut: int
    chunks: int

    def __call__(self, triplets: Sequence[Triplet]) -> CollatedBatch:
        """The global batch, of which `triplets` are what this process reads.

        Where a sentence's ids do not begin with the shared prefix, the whole batch goes without.
        """
        roles = 2 if triplets[0].hard_neg is None else 3
        prefix_C, ids, shape = self._ids([text for t in triplets for text in t[:roles]])
        lengths_br = np.array([*map(len, ids)]).reshape(-1, roles)
        shards = balanced(lengths_br.sum(1).tolist(), len(self.share.shards))
        packed = [
            packing.pack([ids[roles * b + r] for b in own for r in range(roles)], *shape, 1)
            for own in shards
        ]
        tokens = int(lengths_br.sum())
        told = self.channel.exchange([max(len(p.rows.ids_BT) for p in packed), tokens])
        rows = rows_of_shard(max(n for n, _ in told), self.share.mesh.shape["data"], self.chunks)
        numbers = self.share.index * len(triplets) + shards  # in the global batch
        parts = [_shard(*part, rows, roles) for part in zip(packed, numbers, strict=True)]
        batch = Batch(*map(self._on_mesh, zip(*parts, strict=True)))
        # Processes that feed the same shards tell of the same tokens.
        tokens = sum(tokens for _, tokens in told) * self.share.count // len(told)
        return CollatedBatch(batch, prefix_C, 1 - tokens / batch.sentence_BT.size)

    def _ids(self, texts: list[str]) -> tuple[np.ndarray, list[np.ndarray], tuple[int, int]]:
        """The shared prefix, what every prompt has behind it, and the shape of a row."""
        prompts = self.prompt(self.prompt.tokenizer.cut(texts, self.cut))
        prefix_C, ids, shared = self.prompt.prefix_C, prompts.ids, prompts.shared
        whole = [
            np.concatenate([prefix_C, own]) if follows else own
            for own, follows in zip(ids, shared, strict=True)
        ]
        longest = [max(map(len, ids)), max(map(len, whole))]
        told = self.channel.exchange([bool(shared.all()), *longest])
        follow, own, all_of_it = zip(*told, strict=True)
        if not all(follow):
            ids, prefix_C, own = whole, prefix_C[:0], all_of_it
        return prefix_C, ids, row_shape(max(own), len(prefix_C), self.share.mesh)

    def _on_mesh(self, parts: tuple) -> Any:
        return jax.tree.map(lambda *shards: self.share.to_mesh(np.concatenate(shards)), *parts)


def balanced(tokens: Sequence[int], shards: int) -> Int[np.ndarray, "shards triplets"]:
    """Share triplets out so that every shard has as many, and about as many tokens.

    The fullest shard decides how many rows all of them have. The longest triplet comes first, each
    goes to the shard with the fewest tokens that still has room; a shard keeps their order.
    """
    room = len(tokens) // shards
    shared_out: list[list[int]] = [[] for _ in range(shards)]
    open_ = [(0, shard) for shard in range(shards)]
    for triplet in sorted(range(len(tokens)), key=lambda n: -tokens[n]):
        filled, shard = heapq.heappop(open_)
        shared_out[shard].append(triplet)
        if len(shared_out[shard]) < room:
            heapq.heappush(open_, (filled + tokens[triplet], shard))
    return np.sort(np.array(shared_out), axis=1)


def _shard(packed: Packed, number_b: np.ndarray, rows: int, roles: int) -> Batch:
    """Rows of one shard, empty ones behind them, and the numbers of its triplets in the batch."""
    ids_BT, last_BS, start_BT = (np.pad(x, ((0, rows - len(x)), (0, 0))) for x in packed.rows)
    sentence_BT = np.zeros_like(ids_BT)
    row_n, slot_n = np.divmod(packed.position_n, last_BS.shape[1])
    number_n = (roles * number_b[:, None] + np.arange(roles)).ravel()
    for number, row, last in zip(number_n, row_n, last_BS[row_n, slot_n], strict=True):
        sentence_BT[row, start_BT[row, last] : last + 1] = number
    place_b3 = packed.position_n.reshape(-1, roles)
    return Batch(Rows(ids_BT, last_BS, start_BT), sentence_BT, place_b3, number_b)


def rows_of_shard(rows: int, shards: int, chunks: int) -> int:
    """Rows of a shard, some of them empty, so that few shapes are ever compiled.

    A multiple of chunks, up to an 8th more than are filled; a small batch up to 3 more.
    """
    unit = chunks
    while unit * shards < 4 or 16 * unit <= rows:
        unit *= 2
    return -(-rows // unit) * unit


def make_batches(config: TrainConfig, triplets: Sequence[Triplet], share: Share) -> Batches:
    """This process's rows of the batches of the run: of its epochs, or of `--steps` steps."""
    epochs = config.epochs
    if config.steps is not None:
        epochs = config.steps / max(1, len(triplets) // config.batch)
    return Batches(
        triplets,
        batch=config.batch,
        epochs=epochs,
        seed=config.seed,
        process_index=share.index,
        process_count=share.count,
    )
