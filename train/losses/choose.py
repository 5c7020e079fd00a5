"""The loss that the flags ask for, with its options."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from prompteol_jax.errors import UserError, listed, nearest
from train.losses import LOSSES
from train.losses.loss import Loss
from train.losses.matryoshka import matryoshka


def choose_loss(name: str, options: Sequence[str] = (), sizes: Sequence[int] = ()) -> Loss:
    """Return a loss by name, with its options set.

    Args:
        options: texts `NAME=VALUE`.
        sizes: numbers of a vector's first numbers that the loss is summed over; none for all alone.
    Raises: UserError for a name, an option or a size that is not allowed, all in one error.
    """
    if name not in LOSSES:
        raise UserError(
            f"--loss {name} is unknown{nearest(name, LOSSES)}: choose one of {listed(LOSSES)}"
        )
    loss = LOSSES[name]
    values, problems = _read_options(name, loss, options)
    if any(size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
        problems.append(f"--matryoshka {' '.join(map(str, sizes))}: sizes differ, from 1 up")
    if problems:
        raise UserError("; ".join(problems))
    function = partial(loss.function, **values) if values else loss.function
    return loss._replace(function=matryoshka(function, sizes) if sizes else function)


def _read_options(
    name: str, loss: Loss, options: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the options by name, and what is wrong with them."""
    values: dict[str, Any] = {}
    problems = []
    for text in options:
        option, _, value = text.partition("=")
        if option not in loss.options or not value:
            problems.append(
                f"--loss-options {text}: {name} has the options {listed(loss.options)}, each given "
                f"as NAME=VALUE{nearest(option, loss.options)}"
            )
        elif option in values:
            problems.append(f"--loss-options gives {option} twice")
        else:
            try:
                values[option] = loss.options[option](value)
            except ValueError as error:
                problems.append(f"--loss-options {text}: {option} is {error}")
    return values, problems
