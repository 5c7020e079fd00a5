"""Which buckets share a batch where none fills one: those that cost least together.

A batch has a fixed cost (weights read, programs called) and the cost of its rows, empty ones and
padding included. Sentences of a shorter bucket may fill rows of a longer one's batch, where that is
shown to leave their bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

Bucket = Any  # what names a bucket; the longer one is the greater one


@runtime_checkable
class Shapes(Protocol):
    """What is known of the batches of buckets."""

    def sizes(self, bucket: Bucket) -> Sequence[int]:
        """Return the numbers of rows that a bucket's batches may have, ascending."""
        ...

    def holders(self, bucket: Bucket) -> Sequence[Bucket]:
        """Return the buckets whose batches leave the bits of a sentence of this one, itself too."""
        ...

    def cost(self, bucket: Bucket, rows: int) -> float:
        """Return what a batch of so many rows costs, in any unit."""
        ...


class JoinedBuckets(NamedTuple):
    """Buckets that share batches of the last, the longest of them; `rows` of the largest batch."""

    buckets: list[Bucket]
    rows: int


def sharing(first: Bucket, waiting: Mapping[Bucket, int], shapes: Shapes) -> JoinedBuckets:
    """Return the buckets that share batches with one of them.

    The buckets that can be joined are divided so that all waiting sentences cost least.

    Args:
        waiting: number of sentences of each bucket.
    """
    joined = [b for b in waiting if b in shapes.holders(first) or first in shapes.holders(b)]
    joined.sort()
    costs: list[float] = [0.0]  # of the first n buckets, in their best division
    parts: list[JoinedBuckets] = []  # the last part of that division
    for end, holder in enumerate(joined, 1):
        found = []
        for start, part in ((n, joined[n:end]) for n in range(end)):
            if holder in shapes.holders(part[0]):
                cost, rows = _batches(holder, sum(waiting[b] for b in part), shapes)
                found.append((costs[start] + cost, start, rows))
        cost, start, rows = min(found)
        costs.append(cost)
        parts.append(JoinedBuckets(joined[start:end], rows))
    end = len(parts)
    while first not in parts[end - 1].buckets:
        end -= len(parts[end - 1].buckets)
    return parts[end - 1]


def _batches(bucket: Bucket, sentences: int, shapes: Shapes) -> tuple[float, int]:
    """Return the least cost of the batches of so many sentences, and the rows of the largest."""
    sizes = shapes.sizes(bucket)
    full, rest = divmod(sentences, sizes[-1])
    best = [(full * shapes.cost(bucket, sizes[-1]), sizes[-1] if full else 0)]
    for n in range(1, rest + 1):
        found = []
        for size in sizes:
            cost, rows = best[max(0, n - size)]
            found.append((cost + shapes.cost(bucket, size), max(rows, size)))
        best.append(min(found))
    return best[-1]
