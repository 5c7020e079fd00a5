"""The one shape of all batches of a run, chosen from the lengths of its data before its first step.

A step is compiled for one shape, so a batch of another shape would stop the run for the time of a
compilation. Here every batch of the run is packed once, by lengths alone; the fullest one decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from prompteol_jax import distributed
from prompteol_jax.distributed import Channel, Share
from prompteol_jax.encoding import packing
from prompteol_jax.ops import select
from prompteol_jax.progress import progress_bar
from train.data.batches import Batches
from train.data.mixture import MixedBatches
from train.data.sentences import Sentences
from train.run.say import say

_SHORTEST_ROW: Final = 64  # tokens
_LONGEST_ROW: Final = 128  # tokens, unless a sentence is longer: attention spans the whole row
_TILE: Final = 8  # tokens that the length of a row is a multiple of
_SENTENCE: Final = 10  # tokens of an average sentence at least; bounds the sentences of a row
_TRIED: Final = 32  # batches that each length of a row is tried on, and
_BEST: Final = 3  # lengths that are then tried on all batches
_TOKENIZED: Final = 2048  # rows of data tokenized together


class BatchShape(NamedTuple):
    """What all batches of a run have in common.

    Attributes:
        shared: every sentence begins with the shared prefix, which is computed once a step;
            otherwise each sentence computes its own.
        tokens: number of tokens of a row; sentences: the most sentences in a row.
        rows: number of rows of one shard along data.
    """

    shared: bool
    tokens: int
    sentences: int
    rows: int


def choose_batch_shape(
    batches: Batches | MixedBatches, sentences: Sentences, share: Share, chunks: int
) -> BatchShape:
    """Return the shape that holds every batch of the run; all processes get the same one.

    Args:
        batches: the rows that this process reads, by step.
        chunks: number of parts that the rows of a batch are encoded in, which divides them.
    """
    channel = Channel("batch shape")
    numbers = [np.array(batches.numbers(step)) for step in range(len(batches))]
    lengths_n3, shared_n3 = _lengths(batches, np.unique(numbers), sentences)
    shared = all(channel.exchange(bool(shared_n3.all())))
    C = len(sentences.prompt.prefix_C)
    if not shared:
        say("some sentences do not begin with the shared prefix, so each computes its own")
        lengths_n3 += C * shared_n3
        C = 0
    longest = max(channel.exchange(int(lengths_n3.max())))

    shards = len(share.shards)
    parts = [  # the lengths that each shard packs in each step
        lengths_b3[own].ravel().tolist()
        for lengths_b3 in (lengths_n3[step] for step in numbers)
        for own in balanced(lengths_b3.sum(1).tolist(), shards)
    ]

    def with_rows(parts: Sequence[list[int]], shape: tuple[int, int]) -> BatchShape:
        fullest = max(channel.exchange(max(len(packing.bins(part, *shape)) for part in parts)))
        return BatchShape(shared, *shape, -(-fullest // chunks) * chunks)

    def size(shape: BatchShape) -> int:
        return shape.rows * shape.tokens

    shapes = row_shapes(longest, C, share.mesh)
    if len(shapes) > 1:
        shapes.sort(key=lambda shape: size(with_rows(parts[: _TRIED * shards], shape)))
    return min((with_rows(parts, shape) for shape in shapes[:_BEST]), key=size)


def row_shapes(longest: int, C: int, mesh: Mesh) -> list[tuple[int, int]]:
    """Return shapes of rows that hold a sentence of so many ids: tokens, and the most sentences.

    A TPU has a kernel for rows of whole tiles, of which a prefix of C tokens at their head is a
    part: there is one shape. Elsewhere the one with the least padding may be taken.
    """
    if select.packs_whole_tiles(mesh):
        prefix = C if select.prefix_in_rows(C, mesh) else 0
        tokens, most = packing.row_shape(longest + prefix)
        return [(tokens - prefix, most)]
    least = max(_SHORTEST_ROW, -(-longest // _TILE) * _TILE)
    lengths = range(least, max(least, _LONGEST_ROW) + 1, _TILE)
    return [(tokens, tokens // _SENTENCE) for tokens in lengths]


def balanced(tokens: Sequence[int], shards: int) -> Int[np.ndarray, "shards triplets"]:
    """Distribute triplets so that every shard has as many, and about as many tokens.

    The fullest shard decides how many rows all of them have. The longest triplet comes first, each
    goes to the shard with the fewest tokens that still has room; a shard keeps their order.
    """
    room = len(tokens) // shards
    chosen: list[list[int]] = [[] for _ in range(shards)]
    open_ = [(0, shard) for shard in range(shards)]
    for triplet in sorted(range(len(tokens)), key=lambda n: -tokens[n]):
        filled, shard = heapq.heappop(open_)
        chosen[shard].append(triplet)
        if len(chosen[shard]) < room:
            heapq.heappush(open_, (filled + tokens[triplet], shard))
    return np.sort(np.array(chosen), axis=1)


def _lengths(
    batches: Batches | MixedBatches, numbers: np.ndarray, sentences: Sentences
) -> tuple[Int[np.ndarray, "n columns"], Bool[np.ndarray, "n columns"]]:
    """Return the ids of each sentence of these rows after the prefix, and if it began with it.

    Other rows count as empty sentences.
    """
    shape = (len(batches.rows), len(sentences.columns))
    lengths_n3, shared_n3 = np.zeros(shape, np.int64), np.ones(shape, bool)
    show = None if distributed.is_primary() else False
    with progress_bar("read lengths", len(numbers), show) as advance:
        for some in np.split(numbers, range(_TOKENIZED, len(numbers), _TOKENIZED)):
            ids, shared = sentences([batches.rows[int(number)] for number in some])
            lengths_n3[some] = np.array([*map(len, ids)]).reshape(len(some), -1)
            shared_n3[some] = shared.reshape(len(some), -1)
            advance(len(some))
    return lengths_n3, shared_n3
