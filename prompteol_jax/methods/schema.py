"""Frozen dataclasses to JSON and back: every field has a rule, and unknown names are errors.

A field's rule is in its metadata: `parse(value)` returns the value of the field, or raises
`ValueError` with what is allowed. Fields that have their default are left out of the JSON.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar, cast

from prompteol_jax.errors import nearest

Parse = Callable[[Any], Any]
Bound = int | float
Record = TypeVar("Record")
_SHOWN: Final = 80  # characters of a value in an error


def entry(parse: Parse, default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field with a rule; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"parse": parse})


def read(kind: type[Record], fields: Any, where: str, problems: list[str]) -> Record | None:
    """Build a record from parsed JSON; None where something is wrong, which is added to `problems`.

    Args:
        where: name of the record in the file, before its fields; empty for the file itself.
    """
    if not isinstance(fields, Mapping):
        problems.append(f"{where or 'the record'} must be an object, found {_shown(fields)}")
        return None
    declared = dataclasses.fields(cast(Any, kind))
    known = {field.name: field for field in declared if "parse" in field.metadata}
    dot = f"{where}." if where else ""
    found = [
        f"{dot}{_shown(name)} is unknown{nearest(str(name), known)}"
        for name in fields
        if name not in known
    ]
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name not in fields:
            if field.default is dataclasses.MISSING:
                found.append(f"{dot}{name} is missing")
            continue
        try:
            values[name] = field.metadata["parse"](fields[name])
        except Misfit as error:
            found += [f"{dot}{name}{problem}" for problem in error.problems]
    problems += found
    return None if found else kind(**values)


def write(record: Any) -> dict[str, Any]:
    """Return a record's fields for JSON, those with their default left out."""
    return {
        field.name: _plain(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if "parse" in field.metadata and getattr(record, field.name) != field.default
    }


class Misfit(ValueError):
    """A value that a rule refuses; each problem continues the name of its field."""

    def __init__(self, *problems: str):
        super().__init__("; ".join(problems))
        self.problems = problems


def text(value: Any) -> str:
    """Take text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise Misfit(f" must be text, found {_shown(value)}")


def whole(least: int | None = None) -> Parse:
    """Return a rule that takes a whole number, from `least` up."""

    def parse(value: Any) -> int:
        if type(value) is int and (least is None or value >= least) and abs(value) < 2**31:
            return value
        allowed = "a whole number" + ("" if least is None else f" from {least} up")
        raise Misfit(f" must be {allowed}, found {_shown(value)}")

    return parse


def number(value: Any) -> float:
    """Take a finite number."""
    if type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise Misfit(f" must be a finite number, found {_shown(value)}")


def one_of(*allowed: str) -> Parse:
    """Return a rule that takes one of these names."""

    def parse(value: Any) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        near = nearest(str(value), allowed)
        raise Misfit(f" {_shown(value)} is not one of {', '.join(allowed)}{near}")

    return parse


def part(kind: type) -> Parse:
    """Return a rule that takes an object of another record, or null."""

    def parse(value: Any) -> Any:
        if value is None:
            return None
        problems: list[str] = []
        found = read(kind, value, "", problems)
        if problems:
            raise Misfit(*(f".{problem}" for problem in problems))
        return found

    return parse


def optional(rule: Parse) -> Parse:
    """Return a rule that takes null, or what another rule takes."""
    return lambda value: None if value is None else rule(value)


def bound(value: Any) -> Bound:
    """Take a block's number, or a fraction of the depth between 0 and 1."""
    if type(value) is float and 0 < value < 1:
        return value
    if type(value) is int:
        return value
    raise Misfit(
        " must be a block's number or a fraction of the depth above 0 and below 1, "
        f"found {_shown(value)}"
    )


def file_name(value: Any) -> str:
    """Take the name of a file in the record's folder."""
    name = text(value)
    if PurePosixPath(name).name != name or name in (".", "..") or "\\" in name:
        raise Misfit(f" must be a file's name without a folder, found {_shown(name)}")
    return name


def several(rule: Parse) -> Parse:
    """Return a rule that takes a list of what another rule takes, as a tuple."""

    def parse(value: Any) -> tuple:
        if not isinstance(value, list):
            raise Misfit(f" must be a list, found {_shown(value)}")
        found, problems = [], []
        for position, item in enumerate(value):
            try:
                found.append(rule(item))
            except Misfit as error:
                problems += [f"[{position}]{problem}" for problem in error.problems]
        if problems:
            raise Misfit(*problems)
        return tuple(found)

    return parse


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "to_json"):
        return value.to_json()
    return write(value) if dataclasses.is_dataclass(value) else value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
