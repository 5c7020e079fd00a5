"""Batches of fixed shape, which sentences are sorted into.

A sentence goes to the shortest bucket that holds its ids, and every bucket has a fixed number of
rows. So the shape that a sentence is computed in depends on its own length alone. The rows of a
batch do not see each other. Therefore a sentence gets the same bits on the same mesh, in any
company.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from prompteol_jax import axes, distributed
from prompteol_jax.encoding import packing
from prompteol_jax.encoding.buckets import Buckets
from prompteol_jax.models.decoder import Rows

SHORT: Final = 64  # ids of the longest sentence that shares a row
WINDOW: Final = 1024  # sentences that are packed together


class Sentence(NamedTuple):
    """One text to encode.

    Attributes:
        member: its index in the caller's list.
        ids: its ids up to the last position that is read.
        shared: the ids continue the shared prefix, which is left out of them.
        first: first position that a pooling reads, in `ids`.
        auxiliary: ids of the auxiliary prompt, where a method has one.
    """

    member: int
    ids: Int[np.ndarray, "t"]
    shared: bool
    first: int = 0
    auxiliary: Int[np.ndarray, "a"] | None = None

    @property
    def length(self) -> int:
        """Tokens of a row that hold it."""
        return max(len(self.ids), 0 if self.auxiliary is None else len(self.auxiliary))


@dataclass
class Batch:
    """Sentences that are computed together.

    Attributes:
        members: their indices in the caller's list.
        positions: positions of the members' vectors in the flattened `[B * S]` outputs.
        shared: they continue the shared prefix.
        first_BS: first positions that a pooling reads, for `Rows.last_BS`; zero in packed rows.
        auxiliary: rows of the auxiliary prompts, each in the place of its sentence.
    """

    rows: Rows
    members: list[int]
    positions: Int[np.ndarray, "n"]
    shared: bool
    first_BS: Int[np.ndarray, "B S"]
    auxiliary: Rows | None = None

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """What is compiled once: rows, their tokens, sentences of a row, with the prefix or not."""
        B, T = self.rows.ids_BT.shape
        return B, T, self.rows.last_BS.shape[1], self.shared


class Sorter:
    """Sort sentences into batches as they come; a batch leaves when it is full, or at the end."""

    def __init__(self, buckets: Buckets):
        self.buckets = buckets
        self._waiting: dict[tuple[int, bool], list[Sentence]] = {}

    def add(self, sentence: Sentence) -> Iterator[Batch]:
        """Take a sentence; yield a batch if it fills one."""
        bucket = self.buckets.find(sentence.length, sentence.shared)
        waiting = self._waiting.setdefault((bucket, sentence.shared), [])
        waiting.append(sentence)
        if len(waiting) == self.buckets.rows[bucket]:
            yield self._batch(bucket, sentence.shared)

    def rest(self) -> Iterator[Batch]:
        """Yield what waits, filled up with rows that are never read."""
        for bucket, shared in sorted(self._waiting):
            if self._waiting[bucket, shared]:
                yield self._batch(bucket, shared)

    def _batch(self, bucket: int, shared: bool) -> Batch:
        return fill_batch(self.buckets, bucket, self._waiting.pop((bucket, shared)))


def fill_batch(buckets: Buckets, bucket: int, sentences: Sequence[Sentence]) -> Batch:
    """Return a batch of one bucket; rows without a sentence are never read."""
    shape = buckets.rows[bucket], buckets.lengths[bucket]
    first_BS = np.zeros((shape[0], 1), np.int32)
    first_BS[: len(sentences), 0] = [sentence.first for sentence in sentences]
    rows = _one_each([sentence.ids for sentence in sentences], *shape)
    members, shared = [sentence.member for sentence in sentences], sentences[0].shared
    auxiliary = _auxiliary(sentences, lambda ids: _one_each(ids, *shape))
    return Batch(rows, members, np.arange(len(members)), shared, first_BS, auxiliary)


def _one_each(ids: Sequence[np.ndarray], B: int, T: int) -> Rows:
    """Return rows of one sentence each."""
    ids_BT, last_BS = np.zeros((B, T), np.int32), np.zeros((B, 1), np.int32)
    for row, own in enumerate(ids):
        ids_BT[row, : len(own)], last_BS[row] = own, len(own) - 1
    return Rows(ids_BT, last_BS)


def _auxiliary(
    sentences: Sequence[Sentence], lay_out: Callable[[list[np.ndarray]], Rows]
) -> Rows | None:
    """Return the rows of the auxiliary prompts, where there are any."""
    ids = [sentence.auxiliary for sentence in sentences if sentence.auxiliary is not None]
    return lay_out(ids) if ids else None


class Packer:
    """Pack the short sentences of every thousand into rows; longer ones go to a sorter.

    The other sentences of its row change a sentence's vector by rounding.
    """

    def __init__(self, buckets: Buckets, batch_tokens: int, multiple: int):
        self.sorter = Sorter(buckets)
        self.capacity, self.most = packing.row_shape(SHORT)
        self.rows = packing.rows_of(self.capacity, batch_tokens, multiple)
        self._waiting: dict[bool, list[Sentence]] = {True: [], False: []}
        self._rows: dict[bool, list[list[Sentence]]] = {True: [], False: []}

    def add(self, sentence: Sentence) -> Iterator[Batch]:
        """Take a sentence; yield batches if it completes a window or fills a batch."""
        if sentence.length > SHORT:
            yield from self.sorter.add(sentence)
            return
        self._waiting[sentence.shared].append(sentence)
        if len(self._waiting[sentence.shared]) == WINDOW:
            yield from self._packed(sentence.shared)

    def rest(self) -> Iterator[Batch]:
        """Yield what waits."""
        for shared in (False, True):
            yield from self._packed(shared, at_end=True)
        yield from self.sorter.rest()

    def _packed(self, shared: bool, *, at_end: bool = False) -> Iterator[Batch]:
        """Pack what waits; yield batches of full rows, and at the end those that are left."""
        waiting, self._waiting[shared] = self._waiting[shared], []
        dealt = packing.bins([s.length for s in waiting], self.capacity, self.most)
        rows = self._rows[shared]
        rows += ([waiting[n] for n in row] for row in dealt)
        while len(rows) >= self.rows or (at_end and rows):
            some, rows[: self.rows] = rows[: self.rows], []
            sentences = [sentence for row in some for sentence in row]
            sizes = itertools.accumulate((len(row) for row in some), initial=0)
            numbered = [list(range(a, b)) for a, b in itertools.pairwise(sizes)]
            lay_out = partial(self._lay_out, numbered)
            packed = lay_out([sentence.ids for sentence in sentences])
            auxiliary = _auxiliary(sentences, lambda ids, lay_out=lay_out: lay_out(ids).rows)
            members = [sentence.member for sentence in sentences]
            first_BS = np.zeros_like(packed.rows.last_BS)
            yield Batch(packed.rows, members, packed.position_n, shared, first_BS, auxiliary)

    def _lay_out(self, dealt: list[list[int]], ids: list[np.ndarray]) -> packing.Packed:
        return packing.lay_out(ids, dealt, self.capacity, self.most, self.rows)


def to_mesh(array: np.ndarray, dims: str, mesh: Mesh) -> jax.Array:
    """Put a host array that every process holds onto a mesh, laid out by the letters of `dims`."""
    return distributed.to_global(array, axes.sharding(dims, array.shape, mesh))


def rows_to_mesh(rows: Rows, mesh: Mesh) -> Rows:
    """Put rows onto a mesh."""
    start_BT = None if rows.start_BT is None else to_mesh(rows.start_BT, "BT", mesh)
    return Rows(to_mesh(rows.ids_BT, "BT", mesh), to_mesh(rows.last_BS, "BS", mesh), start_BT)
