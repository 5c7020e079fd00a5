"""The jitted encode, and the slabs of fixed shape that sentences are sorted into.

A sentence goes to the shortest rung of a ladder of lengths that holds its ids, and every rung has a
fixed number of rows. The shape that a sentence is computed in depends on its own length
alone, and the rows of a slab do not see each other: whatever else is encoded with it, a sentence
gets the same bits on the same mesh.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompteol_jax.encoding import packing
from prompteol_jax.encoding.buckets import Ladder
from prompteol_jax.models.decoder import Decoder, KVCache, Rows

SHORT: Final = 64  # ids of a sentence that shares a row
WINDOW: Final = 1024  # sentences that are packed together


@jax.jit
def encode(model: Decoder, rows: Rows, cache: KVCache | None = None) -> Float[Array, "B S D"]:
    """Final hidden states of the last tokens of the sentences in `rows`, float32.

    Args:
        cache: keys and values of the prefix that every sentence continues, from `prefill`.
    """
    return model(rows, cache)


@jax.jit
def encode_mean(model: Decoder, rows: Rows) -> Float[Array, "B D"]:
    """Mean of the final hidden states of all tokens of each row, a whole prompt, float32."""
    return model.mean(rows)


@jax.jit
def encode_layers(
    model: Decoder, rows: Rows, cache: KVCache | None = None
) -> Float[Array, "B S w"]:
    """States of the last tokens behind every block, side by side: inner ones raw, then `encode`'s.

    The width w is that of L-1 residual states and one final vector.
    """
    x_LBSD, z_BSD = model.states(rows, cache)
    return jnp.concatenate([*x_LBSD, z_BSD], axis=-1)


@jax.jit
def encode_after(model: Decoder, rows: Rows, caches: KVCache) -> Float[Array, "A B S D"]:
    """`encode` behind each of A prefixes, stacked along a leading axis of `caches`."""
    return jax.vmap(lambda cache: encode(model, rows, cache))(caches)


@jax.jit
def prefill(model: Decoder, ids_C: Int[Array, "C"]) -> KVCache:
    """Keys and values of a prompt prefix, once for all sentences."""
    return model.prefill(ids_C)


@jax.jit
def prefill_padded(model: Decoder, ids_AC: Int[Array, "A C"], tokens_A: Int[Array, "A"]) -> KVCache:
    """`prefill` of A prefixes, each padded behind its own tokens, for `encode_after`."""

    def one(ids_C: jax.Array, tokens: jax.Array) -> KVCache:
        return model.prefill(ids_C)._replace(tokens=tokens)

    return jax.vmap(one)(ids_AC, tokens_A)


@dataclasses.dataclass(frozen=True)
class WholeRunner:
    """A decoder that runs as one program: how an accelerator encodes."""

    decoder: Decoder

    def prefill(self, ids_C: Int[np.ndarray, "C"]) -> KVCache:
        """Keys and values of a prompt prefix, once for all sentences."""
        return prefill(self.decoder, ids_C)

    def encode(self, rows: Rows, cache: KVCache | None) -> Float[Array, "B S D"]:
        """Final hidden states of the last tokens of the sentences in `rows`, float32."""
        return encode(self.decoder, rows, cache)

    def encode_mean(self, rows: Rows) -> Float[Array, "B D"]:
        """Mean of the final hidden states of all tokens of each row, a whole prompt, float32."""
        return encode_mean(self.decoder, rows)

    def encode_layers(self, rows: Rows, cache: KVCache | None) -> Float[Array, "B S w"]:
        """States of the last tokens behind every block, side by side: inner ones raw."""
        return encode_layers(self.decoder, rows, cache)


@dataclasses.dataclass
class Slab:
    """Sentences that are computed together.

    Attributes:
        members: their places in the caller's list.
        places: of the members' vectors in the flattened `[B * S]` outputs.
        shared: they continue the shared prefix.
    """

    rows: Rows
    members: list[int]
    places: Int[np.ndarray, "n"]
    shared: bool

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """What is compiled once: rows, their tokens, sentences of a row, with the prefix or not."""
        return (*self.rows.ids_BT.shape, self.rows.last_BS.shape[1], self.shared)


class Sorter:
    """Sorts sentences into slabs as they come; a slab leaves when it is full, or at the end."""

    def __init__(self, ladder: Ladder):
        self.ladder = ladder
        self._waiting: dict[tuple[int, bool], list[tuple[int, np.ndarray]]] = {}

    def add(self, member: int, ids: Int[np.ndarray, "t"], shared: bool) -> Iterator[Slab]:
        """Take a sentence; yield a slab if it fills one."""
        rung = self.ladder.rung(len(ids), shared)
        waiting = self._waiting.setdefault((rung, shared), [])
        waiting.append((member, ids))
        if len(waiting) == self.ladder.rows[rung]:
            yield self._slab(rung, shared)

    def rest(self) -> Iterator[Slab]:
        """Yield what waits, padded with rows that nobody looks at."""
        for rung, shared in sorted(self._waiting):
            if self._waiting[rung, shared]:
                yield self._slab(rung, shared)

    def _slab(self, rung: int, shared: bool) -> Slab:
        waiting = self._waiting.pop((rung, shared))
        B, T = self.ladder.rows[rung], self.ladder.lengths[rung]
        ids_BT, last_BS = np.zeros((B, T), np.int32), np.zeros((B, 1), np.int32)
        for row, (_, ids) in enumerate(waiting):
            ids_BT[row, : len(ids)] = ids
            last_BS[row] = len(ids) - 1
        members = [member for member, _ in waiting]
        return Slab(Rows(ids_BT, last_BS), members, np.arange(len(members)), shared)


class Packer:
    """Packs the short sentences of every thousand into rows; longer ones go to a sorter.

    What else is in its row changes a sentence's vector by rounding.
    """

    def __init__(self, ladder: Ladder, batch_tokens: int, multiple: int):
        self.sorter = Sorter(ladder)
        self.capacity, self.most = packing.row_shape(SHORT)
        self.rows = packing.rows_of(self.capacity, batch_tokens, multiple)
        self._waiting: dict[bool, list[tuple[int, np.ndarray]]] = {True: [], False: []}
        self._rows: dict[bool, list[list[tuple[int, np.ndarray]]]] = {True: [], False: []}

    def add(self, member: int, ids: Int[np.ndarray, "t"], shared: bool) -> Iterator[Slab]:
        """Take a sentence; yield slabs if it completes a window or fills a slab."""
        if len(ids) > SHORT:
            yield from self.sorter.add(member, ids, shared)
            return
        self._waiting[shared].append((member, ids))
        if len(self._waiting[shared]) == WINDOW:
            yield from self._packed(shared)

    def rest(self) -> Iterator[Slab]:
        """Yield what waits."""
        for shared in (False, True):
            yield from self._packed(shared, all_of_it=True)
        yield from self.sorter.rest()

    def _packed(self, shared: bool, *, all_of_it: bool = False) -> Iterator[Slab]:
        """Pack what waits; yield slabs of full rows, and at the end what is left of them."""
        waiting, self._waiting[shared] = self._waiting[shared], []
        shared_out = packing.bins([len(ids) for _, ids in waiting], self.capacity, self.most)
        rows = self._rows[shared]
        rows += ([waiting[n] for n in row] for row in shared_out)
        while len(rows) >= self.rows or (all_of_it and rows):
            some, rows[: self.rows] = rows[: self.rows], []
            members, ids = zip(*(sentence for row in some for sentence in row), strict=True)
            sizes = itertools.accumulate((len(row) for row in some), initial=0)
            numbered = [list(range(a, b)) for a, b in itertools.pairwise(sizes)]
            packed = packing.lay_out(ids, numbered, self.capacity, self.most, self.rows)
            yield Slab(packed.rows, list(members), packed.place_n, shared)
