"""The jitted encode, and the slabs of fixed shape that sentences are sorted into.

A sentence goes to the shortest rung of a fixed ladder of lengths that holds its ids, and every rung
has a fixed number of rows. The shape that a sentence is computed in depends on its own length
alone, and the rows of a slab do not see each other: whatever else is encoded with it, a sentence
gets the same bits on the same mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompteol_jax.models.decoder import Decoder, KVCache, Rows

LENGTHS: Final = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256, 512, 1024, 2048)


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
class Ladder:
    """Which shape a sentence is computed in.

    Attributes:
        lengths: of the rungs, ascending; the last one holds the longest prompt.
        rows: of a slab, rung by rung.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def fixed(cls, longest: int, batch_tokens: int, multiple: int) -> Ladder:
        """Rungs up to `longest` ids, slabs of about `batch_tokens` tokens."""
        beyond = (LENGTHS[-1] << n for n in range(1, longest.bit_length()))
        lengths = (*(n for n in (*LENGTHS, *beyond) if n < longest), longest)
        rows = tuple(max(1, batch_tokens // n // multiple) * multiple for n in lengths)
        return cls(lengths, rows)

    def rung(self, length: int) -> int:
        """The index of the shortest rung that holds this many ids."""
        return int(np.searchsorted(self.lengths, length))


@dataclasses.dataclass
class Slab:
    """Sentences that are computed together.

    Attributes:
        members: their places in the caller's list, one a row from the first row on.
        shared: they continue the shared prefix.
    """

    ids_BT: Int[np.ndarray, "B T"]
    last_BS: Int[np.ndarray, "B 1"]
    members: list[int]
    shared: bool


class Sorter:
    """Sorts sentences into slabs as they come; a slab leaves when it is full, or at the end."""

    def __init__(self, ladder: Ladder):
        self.ladder = ladder
        self._waiting: dict[tuple[int, bool], list[tuple[int, np.ndarray]]] = {}

    def add(self, member: int, ids: Int[np.ndarray, "t"], shared: bool) -> Iterator[Slab]:
        """Take a sentence; yield a slab if it fills one."""
        rung = self.ladder.rung(len(ids))
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
        return Slab(ids_BT, last_BS, [member for member, _ in waiting], shared)
