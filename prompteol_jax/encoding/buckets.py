"""Buckets: the lengths that sentences are padded to, and a fixed number of rows for each.

A batch is as good as its useful part. Long buckets mean padding. Many buckets, or many rows in a
batch, mean empty rows when the texts end. Few rows give more weight to the fixed cost of a batch
(weights read, programs called). `Buckets.fitted` balances the three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

LENGTHS: Final = (13, 16, 20, 25, 32, 44, 64, 96, 160, 320, 640, 1024)
_LONG: Final = 4  # buckets for each doubling beyond; such texts cost far more than a compilation
_COMMON: Final = 32  # ids after the prefix; longer sentences are rare, so their batches are smaller
_WHOLE: Final = (64, 320, 1024)  # buckets of the few prompts without the prefix; then doublings
_MOST: Final = 13  # buckets of a fitted set
OVERHEAD: Final = 0.1  # fixed cost of a batch, as a share of the cost of `batch_tokens`


@dataclass(frozen=True)
class Buckets:
    """Which shape a sentence is computed in.

    Attributes:
        lengths: tokens of a row in each bucket, ascending; the last one holds the longest prompt.
        rows: rows of a batch in each bucket.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def fixed(cls, longest: int, batch_tokens: int, multiple: int) -> Buckets:
        """Return the default buckets, which depend on these arguments alone.

        Args:
            longest: ids of the longest prompt.
            batch_tokens: tokens of a batch, about; half as many in buckets for rare lengths.
            multiple: divisor of the number of rows.
        """
        lengths = (*(n for n in (*LENGTHS, *_beyond(longest)) if n < longest), longest)
        rows = tuple(
            max(1, batch_tokens // (1 if n <= _COMMON else 2) // n // multiple) * multiple
            for n in lengths
        )
        return cls(lengths, rows)

    @classmethod
    def fitted(
        cls, counts: Mapping[int, int], longest: int, batch_tokens: int, multiple: int
    ) -> Buckets:
        """Return the buckets that compute so many sentences of each length in the least time.

        Math: a bucket of T ids and n sentences in batches of R rows takes n T for its tokens,
        n c / R for its batches, and R T / 2 for the empty rows of the last batch; with the best
        R = sqrt(2 n c / T) that is n T + sqrt(2 n T c).

        Args:
            counts: number of sentences by number of ids.
            longest, batch_tokens, multiple: as in `fixed`.
        """
        overhead = OVERHEAD * batch_tokens
        tops = _candidates(counts, longest)
        upto = np.array([0, *(sum(n for t, n in counts.items() if t <= top) for top in tops)])
        ends = _cheapest(tops, upto, overhead)
        sizes = np.diff(upto[[0, *ends]])
        lengths = tuple(int(tops[end - 1]) for end in ends)
        rows = (_rows(int(n), T, overhead, multiple) for n, T in zip(sizes, lengths, strict=True))
        return cls(lengths, tuple(rows))

    def find(self, length: int, shared: bool = True) -> int:
        """Return the number of the shortest bucket that holds this many ids.

        Args:
            shared: the ids continue the shared prefix; whole prompts have fewer buckets.
        """
        if not shared:
            longest = self.lengths[-1]
            doublings = (_WHOLE[-1] << n for n in range(1, longest.bit_length()))
            length = min(n for n in (*_WHOLE, *doublings, longest) if n >= length)
        return int(np.searchsorted(self.lengths[:-1], length))

    def __str__(self) -> str:
        shapes = zip(self.rows, self.lengths, strict=True)
        return " ".join(f"{rows}x{length}" for rows, length in shapes)


def _beyond(longest: int) -> Iterator[int]:
    """Yield the lengths of buckets beyond the common ones, each at most a quarter longer."""
    length = LENGTHS[-1]
    while length < longest:
        step = length // _LONG
        yield from range(length + step, 2 * length + 1, step)
        length *= 2


def _candidates(counts: Mapping[int, int], longest: int) -> np.ndarray:
    """Return the lengths that a bucket may have: each up to 64, in steps of a tenth beyond."""
    tops = {n for n in counts if n <= min(64, longest)}
    step = 64
    while step < longest:
        step = min(longest, step * 11 // 10)
        tops.add(step)
    return np.array(sorted({*tops, longest}))


def _cheapest(tops: np.ndarray, upto: np.ndarray, overhead: float) -> list[int]:
    """Return the candidates, counted from 1, at which the buckets of the cheapest set end."""
    n = len(tops)
    held = upto[None, 1:] - upto[:-1, None]  # sentences of a bucket from candidate i to j
    padded = held * tops
    seconds = padded + np.sqrt(2 * np.maximum(held, 1) * tops * overhead)
    seconds[np.tril_indices(n, -1)] = np.inf
    cost = np.full((_MOST + 1, n + 1), np.inf)  # of the first i candidates in k buckets
    start = np.zeros((_MOST + 1, n + 1), int)  # where the last of these begins
    cost[0, 0] = 0
    for k in range(1, _MOST + 1):
        through = cost[k - 1, :-1, None] + seconds
        start[k, 1:], cost[k, 1:] = through.argmin(0), through.min(0)
    ends, at = [], n
    for k in range(int(cost[:, n].argmin()), 0, -1):
        ends.append(at)
        at = int(start[k, at])
    return ends[::-1]


def _rows(n: int, length: int, overhead: float, multiple: int) -> int:
    best = math.sqrt(2 * n * overhead / length)
    batches = max(1, round(n / max(best, 1.0)))
    return max(1, math.ceil(n / batches / multiple)) * multiple
