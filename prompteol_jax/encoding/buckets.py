"""Which shape a sentence is computed in: rungs of lengths, and a fixed number of rows for each.

A slab is as good as its useful part. Longer rungs mean padding, more rungs or more rows a slab mean
more rows that stand empty when the texts end, and fewer rows mean that what a slab costs whatever
it holds (weights read, programs called) weighs more. `cheapest` balances the three.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

import numpy as np

LENGTHS: Final = (13, 16, 20, 25, 32, 44, 64, 96, 160, 320, 640, 1280, 2048)
_COMMON: Final = 32  # ids behind the prefix; longer sentences are rare, and so their slabs smaller
_WHOLE: Final = (64, 320)  # prompts without the prefix, a few at most, go to the rungs of these
_RUNGS: Final = 13  # with three rungs for prompts without the prefix, 16 shapes at most


@dataclasses.dataclass(frozen=True)
class Costs:
    """The seconds of a slab as `slab + token * tokens`, padding and empty rows included."""

    slab: float
    token: float

    @classmethod
    def fit(cls, tokens: tuple[int, int], seconds: tuple[float, float]) -> Costs:
        """The line through a small and a large slab, never falling and never from below zero."""
        (few, many), (short, long) = tokens, seconds
        token = min(max((long - short) / (many - few), 0.5 * long / many), long / many)
        return cls(long - many * token, token)


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
        """Rungs up to `longest` ids, slabs of about `batch_tokens` tokens, half for rare rungs."""
        beyond = (LENGTHS[-1] << n for n in range(1, longest.bit_length()))
        lengths = (*(n for n in (*LENGTHS, *beyond) if n < longest), longest)
        rows = tuple(
            max(1, batch_tokens // (1 if n <= _COMMON else 2) // n // multiple) * multiple
            for n in lengths
        )
        return cls(lengths, rows)

    def rung(self, length: int, shared: bool = True) -> int:
        """The index of the shortest rung that holds this many ids.

        Args:
            shared: the ids continue the shared prefix; whole prompts have fewer rungs.
        """
        if not shared:
            length = min(n for n in (*_WHOLE, self.lengths[-1]) if n >= length)
        return int(np.searchsorted(self.lengths[:-1], length))

    def __str__(self) -> str:
        rungs = zip(self.rows, self.lengths, strict=True)
        return " ".join(f"{rows}x{length}" for rows, length in rungs)


def cheapest(
    counts: Mapping[int, float | int], longest: int, costs: Costs, multiple: int
) -> Ladder:
    """The ladder that computes so many sentences of each length in the least time.

    A rung of `T` ids and `n` sentences takes `n T` tokens, one slab's cost for every `R` rows, and
    about half a slab that stands empty at the end; `R = sqrt(2 n slab / (T token))` is best.

    Args:
        counts: sentences by number of ids.
        longest: ids of the longest prompt, for which there is always a rung.
        multiple: what the number of rows divides by.
    """
    ends = _candidates(counts, longest)
    upto = np.cumsum([sum(counts.get(n, 0.0) for n in range(a + 1, b + 1)) for a, b in ends])
    tops = [top for _, top in ends]

    def seconds(first: int, last: int) -> float:
        n = float(upto[last] - (upto[first - 1] if first else 0.0))
        padded = n * tops[last] * costs.token
        return padded + math.sqrt(2 * max(n, 1.0) * tops[last] * costs.slab * costs.token)

    # best[k][i]: the least seconds for the first i lengths on k rungs, and where the last begins.
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for _ in range(_RUNGS):
        best.append(
            {
                i: min((best[-1][j][0] + seconds(j, i - 1), j) for j in best[-1] if j < i)
                for i in range(1, len(tops) + 1)
                if any(j < i for j in best[-1])
            }
        )
    rungs = min(range(1, _RUNGS + 1), key=lambda k: best[k].get(len(tops), (math.inf, 0))[0])
    chosen, at = [], len(tops)
    for k in range(rungs, 0, -1):
        start = best[k][at][1]
        chosen.append((tops[at - 1], float(upto[at - 1] - (upto[start - 1] if start else 0.0))))
        at = start
    chosen.reverse()
    rows = tuple(_rows(n, length, costs, multiple) for length, n in chosen)
    return Ladder(tuple(length for length, _ in chosen), rows)


def _candidates(counts: Mapping[int, float | int], longest: int) -> list[tuple[int, int]]:
    """Spans of lengths, (from, to], that a rung may end: each up to 64, a tenth apart beyond."""
    tops = [n for n in sorted(counts) if n <= min(64, longest)]
    step = 64
    while step < longest:
        step = min(longest, step * 11 // 10)
        tops.append(step)
    tops = sorted({*tops, longest})
    return list(zip([0, *tops[:-1]], tops, strict=True))


def _rows(n: float, length: int, costs: Costs, multiple: int) -> int:
    best = math.sqrt(2 * n * costs.slab / (length * costs.token))
    slabs = max(1, round(n / max(best, 1.0)))
    return max(1, math.ceil(n / slabs / multiple)) * multiple


def expected(suffix: int, longest: int) -> dict[int, float]:
    """Sentences by length in 2,000 of them, where nothing is known of the texts.

    Most follow a log-normal around 12 tokens, as those of STS, one in twenty any length.

    Args:
        suffix: ids that the template puts behind a sentence.
    """
    own = np.arange(1, max(2, longest - suffix + 1))
    near = np.exp(-0.5 * (np.log(own / 12) / 0.5) ** 2) / own
    far = 1.0 / own
    weight = 1900 * near / near.sum() + 100 * far / far.sum()
    return {min(int(n) + suffix, longest): float(w) for n, w in zip(own, weight, strict=True)}
