# SPDX-License-Identifier: Apache-2.0
"""The rows of every step of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from prompteol_jax.errors import UserError


class Batches:
    """The rows of every step: a pure function of the rows, the seed and the step.

    Each epoch is its own permutation, divided into whole batches; the rows that do not fill a last
    one are left out, others each epoch. Processes hold contiguous slices of one global batch, which
    is the same for any number of them. Any step can be read at any time.

    Args:
        rows: anything with a length and integer indices; only the rows of this process are read.
        batch: number of rows of the global batch.
        epochs: passes over the rows; a fraction ends inside an epoch, after a whole step.
    Raises: UserError if no batch can be formed, naming everything that is wrong.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        *,
        batch: int,
        epochs: float,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        _check_batches(len(rows), batch, epochs, process_index, process_count)
        self.steps_per_epoch, self.left_out = divmod(len(rows), batch)
        # Rounded first, so that epochs = steps / steps_per_epoch gives back exactly these steps.
        self._steps = max(1, math.ceil(round(epochs * self.steps_per_epoch, 6)))
        self.rows, self._batch, self._seed = rows, batch, seed
        share = batch // process_count
        self._slice = slice(process_index * share, (process_index + 1) * share)

    def __len__(self) -> int:
        """Return the number of steps of all epochs."""
        return self._steps

    def __getitem__(self, step: int) -> list[Any]:
        """Return this process's rows of the step's global batch; steps count from 0."""
        return [self.rows[row] for row in self.numbers(step)]

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of this process's rows of the step's global batch."""
        return self._numbers(step)[self._slice]

    def whole(self, step: int) -> list[Any]:
        """Return all rows of the step's global batch."""
        return [self.rows[row] for row in self._numbers(step)]

    def source(self, step: int) -> str:
        """Return the name of the source of the step's rows; nothing where there is one source."""
        return ""

    def origin(self, step: int) -> tuple[str, list[int]]:
        """Return where the step's global batch comes from: `line` of a file, from 1, or `row`, from
        0, and the numbers.
        """
        lines = getattr(self.rows, "lines", None)
        numbers = self._numbers(step)
        return ("row", numbers) if lines is None else ("line", [lines[row] for row in numbers])

    def _numbers(self, step: int) -> list[int]:
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} is outside the run's {self._steps} steps.")
        return [int(row) for row in self._order[step]]

    @functools.cached_property
    def _order(self) -> Any:
        import grain  # imports slowly

        # Row numbers are shuffled, not rows, so that a process reads no row of another.
        numbers = grain.MapDataset.range(len(self.rows)).seed(self._seed).shuffle()
        return numbers.batch(self._batch, drop_remainder=True).repeat()


def _check_batches(
    rows: int, batch: int, epochs: float, process_index: int, process_count: int
) -> None:
    problems = []
    if batch < 1:
        problems.append(f"a batch of {batch}; it needs at least 1 row")
    elif batch > rows:
        problems.append(
            f"a batch of {batch}, but only {rows} rows; use at most {rows}, or more rows"
        )
    if not (epochs > 0 and math.isfinite(epochs)):
        problems.append(f"{epochs} epochs; any finite number above 0 is allowed")
    if not 0 <= process_index < process_count:
        problems.append(f"process {process_index} of {process_count}; they count from 0")
    elif batch >= 1 and batch % process_count:
        problems.append(f"a batch of {batch}, which {process_count} processes cannot share evenly")
    if problems:
        raise UserError("No batches can be formed: " + "; ".join(problems) + ".")
