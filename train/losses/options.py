"""How the options of a loss are read from text, `--loss-options temperature=0.1`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from train.losses.loss import Parser


def above_zero(text: str) -> float:
    """Read a finite number above 0."""
    value = _finite(text)
    if value is None or value <= 0:
        raise ValueError("a number above 0")
    return value


def number_or_none(text: str) -> float | None:
    """Read a finite number, or `none`."""
    value = None if text == "none" else _finite(text)
    if value is None and text != "none":
        raise ValueError("a number, or `none`")
    return value


def some_of(names: Sequence[str], *, first: str) -> Parser:
    """Return a reader of names joined by `+`, of which `first` is always one."""

    def read(text: str) -> tuple[str, ...]:
        found = text.split("+")
        if not set(found) <= set(names) or first not in found or len(set(found)) < len(found):
            others = ", ".join(name for name in names if name != first)
            raise ValueError(f"{first}, joined by + with any of {others}")
        return tuple(name for name in names if name in found)

    return read


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
