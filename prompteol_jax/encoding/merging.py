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


class Share(NamedTuple):
    """Buckets that share batches of the last, the longest of them; `rows` of the first batch."""

    buckets: list[Bucket]
    rows: int


def sharing(first: Bucket, waiting: Mapping[Bucket, int], shapes: Shapes) -> Share:
    """Return the buckets that share a batch with one of them.

    The buckets that can be joined are divided so that all waiting sentences cost least.

    Args:
        waiting: number of sentences of each bucket.
    """
    joined = [b for b in waiting if b in shapes.holders(first) or first in shapes.holders(b)]
    joined.sort()
    costs, shares = [0.0], []  # of the first n buckets; the last share of their best division
    for end, holder in enumerate(joined, 1):
        found = []
        for start, group in ((n, joined[n:end]) for n in range(end)):
            if holder in shapes.holders(group[0]):
                cost, rows = _batches(holder, sum(waiting[b] for b in group), shapes)
                found.append((costs[start] + cost, start, rows))
        cost, start, rows = min(found)
        costs.append(cost)
        shares.append(Share(joined[start:end], rows))
    share = shares.pop()
    while first not in share.buckets:
        del shares[len(shares) + 1 - len(share.buckets) :]
        share = shares.pop()
    return share


def _batches(bucket: Bucket, sentences: int, shapes: Shapes) -> tuple[float, int]:
    """Return the least cost of the batches of so many sentences, and the rows of the largest."""
    sizes = shapes.sizes(bucket)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for n in range(1, sentences + 1):
        options = ((best[max(0, n - s)], s) for s in sizes)
        best.append(min((shapes.cost(bucket, s) + rest[0], max(s, rest[1])) for rest, s in options))
    return best[-1]
