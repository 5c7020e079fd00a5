"""Other shapes for few texts, where they are shown to give the bits of a full batch.

A text alone would cost a full batch of its bucket. Fewer rows cost less, but a platform may then
add the products of a row in another order. So a smaller shape is used only after a proof on the
device: the same sentences were computed in both shapes, and every row agreed in every bit. The
order of a sum depends on the shapes of its operands, not on their values, so one proof is enough.
A proof of the same kind lets sentences of two buckets share a batch of the longer one.

On a CPU `select.row_stable` lets the compiler choose the same kernels for few rows and for many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import jax
import numpy as np

from prompteol_jax import distributed
from prompteol_jax.encoding.batching import Batch
from prompteol_jax.models.decoder import Rows

PATIENCE: Final = 2  # small batches of a shape before another shape is compiled for them
_FEWEST: Final = 2  # a single row would make products of a matrix and a vector
_FINE: Final = 16  # rows up to which the next shape has twice as many; then four times

Launch = Callable[[Batch], jax.Array]


@dataclass(frozen=True)
class SmallBatches:
    """What is known of smaller shapes. Threads may share it: a proof done twice has one result.

    Attributes:
        equal: by the shape of a full batch and a number of rows: is every bit the same?
        wanted: how often a batch of this shape had few sentences.
    """

    equal: dict[tuple[Any, int], bool] = field(default_factory=dict)
    wanted: Counter[tuple[Any, int]] = field(default_factory=Counter)

    def shrink(
        self, batch: Batch, launch: Launch, multiple: int, *, patience: int = PATIENCE
    ) -> Batch:
        """Return a batch of the same sentences and fewer rows, if that is shown to be equal.

        Args:
            batch: batch with one sentence a row, the first rows filled.
            launch: function that starts computing a batch.
            multiple: divisor of the number of rows.
            patience: batches that stay full before a new shape is compiled and tried.
        """
        if not _can_shrink(batch):
            return batch
        for rows in candidates(len(batch.rows.ids_BT), multiple):
            known = self.equal.get((batch.shape, rows))
            if rows < len(batch.members) or known is False:
                continue
            if known is None:
                self.wanted[batch.shape, rows] += 1
                if self.wanted[batch.shape, rows] <= patience:
                    return batch
                self.prove(batch, rows, launch)
            if self.equal[batch.shape, rows]:
                return with_rows(batch, rows)
        return batch

    def equal_rows(self, shape: Any, multiple: int) -> list[int]:
        """Return the numbers of rows that are shown to be equal, and that of a full batch."""
        shown = [n for n in candidates(shape[0], multiple) if self.equal.get((shape, n))]
        return [*shown, shape[0]]

    def prove(self, batch: Batch, rows: int, launch: Launch) -> bool:
        """Compute the sentences of a batch in both shapes, and remember if every bit agrees."""
        full = repeated(batch, len(batch.rows.ids_BT), rows)
        small = repeated(batch, rows, rows)
        full_z, small_z = (_vectors(one, launch(one)) for one in (full, small))
        same = full_z.tobytes() == small_z[np.arange(len(full_z)) % rows].tobytes()
        self.equal[batch.shape, rows] = same
        return same

    def prove_all(self, batch: Batch, launch: Launch, multiple: int) -> int:
        """Prove smaller shapes of a batch, up to the first that differs; return their number."""
        count = 0
        if not _can_shrink(batch):
            return count
        for rows in candidates(len(batch.rows.ids_BT), multiple):
            known = self.equal.get((batch.shape, rows))
            count += 1
            if not (self.prove(batch, rows, launch) if known is None else known):
                break
        return count


def agree(short: Batch, long: Batch, launch: Launch) -> bool:
    """Compute full batches of the same sentences in two buckets; say if every bit is the same."""
    if not _can_shrink(short):
        return False
    first, second = (_vectors(one, launch(one)).tobytes() for one in (short, long))
    return first == second


def _can_shrink(batch: Batch) -> bool:
    """Say whether a batch has one sentence a row, and no second prompt of each."""
    return batch.rows.start_BT is None and batch.auxiliary is None


def candidates(rows: int, multiple: int) -> Iterator[int]:
    """Yield the smaller numbers of rows that are worth a shape, in ascending order."""
    small = _FEWEST * multiple
    while 2 * small <= rows:
        yield small
        small *= 2 if small < _FINE * multiple else 4


def with_rows(batch: Batch, rows: int) -> Batch:
    """Return the first rows of a batch, which hold its sentences."""
    ids_BT, last_BS, _ = batch.rows
    return Batch(
        Rows(ids_BT[:rows], last_BS[:rows]),
        batch.members,
        batch.positions,
        batch.shared,
        batch.first_BS[:rows],
    )


def repeated(batch: Batch, rows: int, period: int) -> Batch:
    """Return a batch of so many rows, all filled: the sentences again and again, in one period."""
    row = np.arange(rows) % period % len(batch.members)
    ids_BT, last_BS, _ = batch.rows
    return Batch(
        Rows(ids_BT[row], last_BS[row]),
        list(range(rows)),
        np.arange(rows),
        batch.shared,
        batch.first_BS[row],
    )


def _vectors(batch: Batch, z_BSW: jax.Array) -> np.ndarray:
    z = distributed.to_host(z_BSW)
    return z.reshape(-1, z.shape[-1])[batch.positions]
