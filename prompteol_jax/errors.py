"""Errors that a user can mend: a command shows one as a single line; any other is a bug of ours.

Each also is the built-in error of its kind, so that callers in Python catch what they expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An input that cannot work; the message says what was given, what is allowed, what to do."""


class NotFound(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class AlreadyExists(UserError, FileExistsError):
    """A file or folder that is there and would be lost."""


class CannotWrite(UserError, OSError):
    """A file or folder that cannot be written: a full disk, a read-only folder."""


class IsAFolder(UserError, IsADirectoryError):
    """A folder where a file is wanted."""


class Unreachable(UserError, ConnectionError):
    """A service on the network that does not answer, or refuses."""


class NotFinite(UserError, FloatingPointError):
    """A vector, a loss or a score that is not a finite number."""


class WrongType(UserError, TypeError):
    """An argument of another type than the function takes."""


def listed(items: Iterable[object], limit: int = 20) -> str:
    """Return `a, b and 3 more`; `none` where there are no items."""
    shown, more = _shown(items, limit)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def listed_problems(problems: Iterable[object], limit: int = 20, total: int | None = None) -> str:
    """Return `a; b; and 3 more`.

    Args:
        total: number of problems, where `problems` are the first of them only.
    """
    shown, more = _shown(problems, limit)
    more += 0 if total is None else total - len(shown) - more
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def listed_lines(items: Iterable[object], limit: int = 20) -> str:
    """Return items one a line, each indented and after a line break, and `and 3 more`."""
    shown, more = _shown(items, limit)
    return "".join(f"\n  {item}" for item in [*shown, *([f"and {more} more"] if more else [])])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean NAME?)` for the known name that is most like this one, or nothing."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _shown(items: Iterable[object], limit: int) -> tuple[list[str], int]:
    names = [str(item) for item in items]
    return names[:limit], max(0, len(names) - limit)
