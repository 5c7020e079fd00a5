"""Several sentences to a row, so that short ones do not pay for the padding of long ones.

Sentences are packed best-fit from the longest on. In a row each sees itself and the shared prefix
only (`Rows.start_BT`), so a vector differs from that of the sentence alone by rounding at most.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int

from prompteol_jax.errors import UserError
from prompteol_jax.models.decoder import Rows

ROW: Final = 128  # tokens of a row, unless a sentence is longer; a TPU's tile is as wide
_SHORTEST: Final = 10  # tokens that a sentence has on average at least


def row_shape(longest: int) -> tuple[int, int]:
    """Return a row's capacity and its largest number of sentences, given the longest sentence."""
    capacity = -(-longest // ROW) * ROW
    return capacity, capacity // _SHORTEST


def rows_of(capacity: int, tokens: int, multiple: int) -> int:
    """Return the number of rows that hold about so many tokens, a multiple of `multiple`."""
    return max(1, tokens // capacity // multiple) * multiple


class Packed(NamedTuple):
    """Rows of several sentences, and the position of each sentence's vector.

    Attributes:
        position_n: position of the n-th sentence in the flattened `[B * S]` outputs.
    """

    rows: Rows
    position_n: Int[np.ndarray, "n"]


def bins(lengths: Sequence[int], capacity: int, most: int) -> list[list[int]]:
    """Deal sentences to rows of `capacity` tokens and at most `most` sentences each.

    Every sentence goes into the fullest row that still has room, the longest sentence first.

    Raises: UserError for a sentence longer than a row.
    """
    if lengths and max(lengths) > capacity:
        raise UserError(f"a sentence of {max(lengths)} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of each open row, ascending
    for sentence in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        at = bisect.bisect_left(room, (lengths[sentence], -1))
        if at == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(sentence)
        if len(rows[row]) < most:
            bisect.insort(room, (free - lengths[sentence], row))
    return rows


def pack(ids: Sequence[np.ndarray], capacity: int, most: int, multiple: int) -> Packed:
    """Lay sentences out in rows of `capacity` tokens; their number is a multiple of `multiple`."""
    dealt = bins([len(i) for i in ids], capacity, most)
    return lay_out(ids, dealt, capacity, most, -(-len(dealt) // multiple) * multiple)


def lay_out(
    ids: Sequence[np.ndarray], dealt: Sequence[Sequence[int]], capacity: int, most: int, B: int
) -> Packed:
    """Fill `B` rows, each with the sentences of one bin, one after the other."""
    ids_BT = np.zeros((B, capacity), np.int32)
    start_BT = np.zeros((B, capacity), np.int32)
    last_BS = np.zeros((B, most), np.int32)
    position_n = np.zeros(len(ids), np.int32)
    for row, sentences in enumerate(dealt):
        at = 0
        for slot, sentence in enumerate(sentences):
            end = at + len(ids[sentence])
            ids_BT[row, at:end] = ids[sentence]
            start_BT[row, at:end] = at
            last_BS[row, slot] = end - 1
            position_n[sentence] = row * most + slot
            at = end
        start_BT[row, at:] = at
    return Packed(Rows(ids_BT, last_BS, start_BT), position_n)
