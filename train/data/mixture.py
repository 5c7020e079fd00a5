"""Several sources of rows in one run: every batch comes from one of them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from prompteol_jax.errors import UserError, listed
from train.data.batches import Batches
from train.data.triplets import columns_of


class Mixture(Sequence[Any]):
    """The rows of several sources, one source after the other.

    Args:
        sources: rows by the name of their source.
        weights: share of the steps that each source gets, relative to the others; by default as its
            share of all whole batches.
    Raises: UserError where the sources differ in their columns, or weights do not fit them.
    """

    def __init__(self, sources: dict[str, Sequence[Any]], weights: Sequence[float | int] = ()):
        self.names, self.parts = [*sources], [*sources.values()]
        self.weights = weights
        self.starts = [0, *itertools.accumulate(map(len, self.parts))]
        found = {name: columns_of(rows[0]) for name, rows in sources.items()}
        if len(set(found.values())) > 1:
            shown = "; ".join(f"{name} has {', '.join(columns)}" for name, columns in found.items())
            raise UserError(f"--data: all sources need the same columns: {shown}")
        if weights and len(weights) != len(sources):
            raise UserError(
                f"--weights gives {len(weights)} numbers for {len(sources)} sources "
                f"({listed(self.names)}): give one for each"
            )

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: Any) -> Any:
        part = bisect.bisect_right(self.starts, number) - 1
        return self.parts[part][number - self.starts[part]]


class MixedBatches:
    """The rows of every step, each step's from one source; as `Batches`, a pure function.

    Sources take turns by their weights, spread evenly over the run; each goes through its rows as
    it would alone, in its own order, and begins again where they end.

    Args:
        steps: number of steps; None for as many as the sources' whole batches in these epochs.
    Raises: UserError where a source cannot fill a batch.
    """

    def __init__(
        self,
        rows: Mixture,
        *,
        batch: int,
        epochs: float,
        steps: int | None,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.rows = rows
        whole = [len(part) // batch for part in rows.parts]
        count = max(1, math.ceil(round(epochs * sum(whole), 6))) if steps is None else steps
        self._source, self._turn = turns(rows.weights or [max(n, 1) for n in whole], count)

        def alone(number: int) -> Batches:
            own = max(1, int((self._source == number).sum()))
            try:
                return Batches(
                    rows.parts[number],
                    batch=batch,
                    epochs=own / max(1, whole[number]),
                    seed=(seed + number) % 2**32,
                    process_index=process_index,
                    process_count=process_count,
                )
            except UserError as error:
                raise UserError(f"{rows.names[number]}: {error}") from error

        self._alone = [alone(number) for number in range(len(whole))]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._source)

    def __getitem__(self, step: int) -> list[Any]:
        """Return this process's rows of the step's global batch; steps count from 0."""
        return self._of(step)[0][int(self._turn[step])]

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of these rows among those of all sources."""
        batches, start = self._of(step)
        return [start + number for number in batches.numbers(int(self._turn[step]))]

    def whole(self, step: int) -> list[Any]:
        """Return all rows of the step's global batch."""
        return self._of(step)[0].whole(int(self._turn[step]))

    def source(self, step: int) -> str:
        """Return the name of the source of the step's rows."""
        return self.rows.names[self._source[step]]

    def origin(self, step: int) -> tuple[str, list[int]]:
        """Return where in its source the step's global batch comes from; see `Batches.origin`."""
        return self._of(step)[0].origin(int(self._turn[step]))

    def _of(self, step: int) -> tuple[Batches, int]:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} is outside the run's {len(self)} steps.")
        number = int(self._source[step])
        return self._alone[number], self.rows.starts[number]


def turns(
    weights: Sequence[float | int], steps: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Return the source of every step, and how many steps that source had before.

    The next turn is that of the source which is furthest behind its share; of equal ones the first.
    """
    share = np.array(weights, np.float64) / sum(weights)
    source, turn = np.zeros(steps, np.int32), np.zeros(steps, np.int32)
    taken = np.zeros(len(share))
    for step in range(steps):
        chosen = int(np.argmax(share * (step + 1) - taken))
        source[step], turn[step] = chosen, taken[chosen]
        taken[chosen] += 1
    return source, turn
