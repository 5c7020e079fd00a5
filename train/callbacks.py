"""What a run reports to a caller from Python while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple


def _nothing(*_: Any) -> None:
    """Do nothing."""


class Callbacks(NamedTuple):
    """Functions that a run calls, in its own thread; what they raise ends the run.

    Attributes:
        on_step: called with the record of every step, as metrics.jsonl holds it.
        on_score: called with the step and its development score.
    """

    on_step: Callable[[dict[str, Any]], None] = _nothing
    on_score: Callable[[int, float], None] = _nothing


NO_CALLBACKS: Final = Callbacks()
