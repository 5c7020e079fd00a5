"""What a loss is: the columns that it needs, its function, its options, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from train.data.columns import NEGATIVE, is_negative

RESERVED: Final = frozenset(
    "step loss lr grad_norm step_s sentences_per_s padding finite_B".split()
)  # names of metrics that a run records itself
LAST: Final = ("last",)

Metrics = dict[str, jax.Array]
LossFunction = Callable[..., tuple[jax.Array, Metrics]]
Parser = Callable[[str], Any]  # from the text of an option to its value; raises ValueError


class Loss(NamedTuple):
    """A loss by what it needs.

    Attributes:
        columns: texts that every row must hold.
        optional: texts that are used where the rows hold them; `hard_neg` means all hard
            negatives of a row: hard_neg, hard_neg_2 and so on.
        function: `(vectors of the columns, in this order, **needs) -> (loss, other metrics)`.
        needs: what the function takes by name with the vectors, a row each over the global batch:
            `score`, the column of that name; `teacher`, the row's given vector; `text`, hashes
            [B, columns, 2] of the texts, equal where these are.
        positions: positions of the prompt whose states are the vectors. With two, the function
            gets two vectors of every column.
        options: keyword arguments that `--loss-options` may set, with how each is read.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    function: LossFunction
    needs: tuple[str, ...] = ()
    positions: tuple[str, ...] = LAST
    options: Mapping[str, Parser] = MappingProxyType({})

    def texts_of(self, present: Sequence[str]) -> tuple[str, ...]:
        """Return the texts that the loss compares, of those that the rows hold."""
        used = [
            name
            for column in self.optional
            for name in present
            if name == column or (column == NEGATIVE and is_negative(name))
        ]
        return (*self.columns, *used)


def check_metrics(metrics: Metrics) -> None:
    """Refuse metrics that a run would overwrite or drop: reserved names, and what is no scalar.

    Raises: ValueError that names all of them.
    """
    taken = sorted(RESERVED & metrics.keys())
    shaped = sorted(name for name, value in metrics.items() if jnp.ndim(value))
    problems = [f"metrics {', '.join(taken)} are the run's own: take other names"] * bool(taken)
    problems += [f"metrics {', '.join(shaped)} are no scalars: reduce them"] * bool(shaped)
    if problems:
        raise ValueError(f"loss function: {'; '.join(problems)}")
