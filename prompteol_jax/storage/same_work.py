"""Is this the same work as before? One comparison for every folder that work is continued in.

Work is described by a mapping from names to what JSON can hold: everything that decides the result,
and nothing else. Mappings within it are compared field by field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from prompteol_jax.errors import UserError, listed_problems

_SHOWN: Final = 100  # characters of a name or a value in an error
_ABSENT: Final = "(nothing)"


def recorded(work: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description as it will be read again from JSON: tuples as lists, paths as text."""
    return json.loads(json.dumps(dict(work), default=str, ensure_ascii=False))


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    ignore: Collection[str] = (),
    label: Callable[[str], str] = str,
) -> list[str]:
    """List what differs between two descriptions of work: `NAME was X and is now Y`.

    Args:
        before: description that was stored.
        now: description of the work that is asked for.
        ignore: names, at the top, that do not decide the result.
        label: how an error spells a name, such as a flag; nested names are joined by dots.
    """
    then, today = _flat(recorded(before), ignore), _flat(recorded(now), ignore)
    return [
        f"{label(name):.{_SHOWN}} was {_shown(then, name)} and is now {_shown(today, name)}"
        for name in {**then, **today}
        if name not in then or name not in today or then[name] != today[name]
    ]


def check_same(
    where: object,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    advice: str,
    ignore: Collection[str] = (),
    label: Callable[[str], str] = str,
) -> None:
    """Refuse to continue work that was begun otherwise.

    Args:
        where: folder or file that holds the earlier work.
        advice: what the user can do, as a sentence without its full stop.
    Raises: UserError that names every difference.
    """
    found = differences(before, now, ignore=ignore, label=label)
    if found:
        raise UserError(refusal(where, found, advice))


def refusal(where: object, found: Collection[str], advice: str) -> str:
    """Return the one wording for work that is not the same."""
    return f"{where} belongs to another run: {listed_problems(found)}. {advice}"


def _flat(work: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in work.items():
        if name in ignore:
            continue
        if isinstance(value, dict) and value:
            found |= {f"{name}.{inner}": v for inner, v in _flat(value, ()).items()}
        else:
            found[name] = value
    return found


def _shown(work: Mapping[str, Any], name: str) -> str:
    if name not in work:
        return _ABSENT
    text = repr(work[name])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
