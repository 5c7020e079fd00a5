"""Lines for the user on standard error; only one process of several writes them."""

from __future__ import annotations

import functools
from typing import Any

from prompteol_jax import distributed


@functools.cache
def console() -> Any:
    """Return the console that lines and progress share, so that neither breaks the other."""
    from rich.console import Console

    return Console(stderr=True)


def say(line: str) -> None:
    """Write a line for the user."""
    if distributed.is_primary():
        console().print(line, soft_wrap=True, highlight=False)
