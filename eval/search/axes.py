"""What of a method can be swept: one row for each setting.

    layer,exit                     both with their usual values
    layer=-1/-2,exit=1..8,scale=2  with these

A setting with several homes (`block`) is that of the part that the record has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from prompteol_jax.errors import UserError, nearest
from prompteol_jax.methods.record import Method

Value = int | float
MOST: Final = 100_000  # values of one axis: a range like 1..9999999999 is a mistake


@dataclass(frozen=True)
class Axis:
    """A setting of a method.

    Attributes:
        part: field of the record that has it, or a stage of `post`; empty for the record itself.
        field: name there.
        usual: values by default, from the method and the number of blocks.
        kind: int or float.
        bounds: smallest and largest value, from the number of blocks; None for no bound.
    """

    part: str
    field: str
    usual: Callable[[Method, int], Sequence[Value]]
    kind: type = int
    bounds: Callable[[int], tuple[Value, Value]] = lambda depth: (0, depth)

    def get(self, method: Method) -> Value | None:
        """Return the value of a record; None where it has no such part."""
        holder = self._holder(method)
        return None if holder is None else getattr(holder, self.field)

    def has(self, method: Method) -> bool:
        """Return whether a record has the part."""
        return self._holder(method) is not None

    def set(self, method: Method, value: Value | None) -> Method:
        """Return the record with another value."""
        if not self.part:
            return dataclasses.replace(method, **{self.field: value})
        changed = dataclasses.replace(self._holder(method), **{self.field: value})
        if hasattr(method, self.part):
            return dataclasses.replace(method, **{self.part: changed})
        post = tuple(changed if stage.kind == self.part else stage for stage in method.post)
        return dataclasses.replace(method, post=post)

    def _holder(self, method: Method) -> Any:
        if not self.part:
            return method
        if hasattr(method, self.part):
            return getattr(method, self.part)
        return next((stage for stage in method.post if stage.kind == self.part), None)


def _starts(method: Method, depth: int) -> Sequence[Value]:
    assert method.copy is not None  # only records with a copy have starts
    return range(min(method.copy.exit, depth) + 1)


def _exits(method: Method, depth: int) -> Sequence[Value]:
    assert method.copy is not None  # only records with a copy have exits
    return range(method.copy.start, depth + 1)


def _anywhere(depth: int) -> tuple[Value, Value]:
    return (-math.inf, math.inf)


def _blocks(depth: int) -> tuple[Value, Value]:
    return (-depth, depth - 1)


AXES: Final[Mapping[str, Axis]] = MappingProxyType(
    {
        "layer": Axis("", "layer", lambda _, L: range(1, L + 1), bounds=lambda L: (-L, L)),
        "start": Axis("copy", "start", _starts),
        "exit": Axis("copy", "exit", _exits),
        "block": Axis("subtract", "block", lambda _, L: range(L), bounds=_blocks),
        "scale": Axis("subtract", "scale", lambda *_: (0.5, 1.0, 2.0, 3.0, 4.0), float, _anywhere),
        "first": Axis("collect", "first", lambda _, L: range(L), bounds=_blocks),
        "slot": Axis("slot", "first", lambda _, L: range(L), bounds=_blocks),
        "ratio": Axis("embed-filter", "ratio", lambda *_: (1, 2, 4, 8), bounds=lambda _: (1, 1e6)),
        "dims": Axis("truncate", "dims", lambda *_: (64, 128, 256, 512), bounds=lambda _: (1, 1e6)),
    }
)


def parse_axes(text: str, method: Method, depth: int) -> dict[str, list[Value]]:
    """Return the values of each setting of `--over`, in its order.

    Raises: UserError naming every setting that does not exist or that the method does not have, and
        every value that is not allowed.
    """
    found: dict[str, list[Value]] = {}
    problems = []
    for item in filter(None, text.split(",")):
        name, given, values = item.partition("=")
        if name not in AXES:
            problems.append(f"{name!r} cannot be swept{nearest(name, AXES)}")
        elif name in found:
            problems.append(f"{name} is given twice")
        elif not AXES[name].has(method):
            problems.append(f"method {method.name} has no {AXES[name].part}, so no {name}")
        elif name == "layer" and (method.pooling != "last" or method.collect):
            problems.append(f"method {method.name} reads more than the last token of one layer")
        else:
            try:
                found[name] = (
                    _values(AXES[name], values, method, depth)
                    if given
                    else list(AXES[name].usual(method, depth))
                )
            except ValueError as error:
                problems.append(f"{name}={values}: {error}")
    if not found and not problems:
        problems.append("nothing to sweep")
    if problems:
        fitting = [name for name, axis in AXES.items() if axis.has(method)]
        raise UserError(
            f"--over {text}: {'; '.join(problems)}. Method {method.name} has {', '.join(fitting)}; "
            "values are given as layer=-1/-2 or exit=1..8"
        )
    return found


def _values(axis: Axis, text: str, method: Method, depth: int) -> list[Value]:
    """Read `1/2/5`, `1..8` or both mixed."""
    found: list[Value] = []
    for item in text.split("/"):
        first, is_range, last = item.partition("..")
        if is_range:
            low, high = int(first), int(last)
            if not low <= high < low + MOST:
                raise ValueError(f"the range {item} must rise, over at most {MOST:,} values")
            found += range(low, high + 1)
        else:
            found.append(axis.kind(item))
    low, high = axis.bounds(depth)
    wrong = [value for value in found if not (math.isfinite(value) and low <= value <= high)]
    if wrong:
        raise ValueError(f"{wrong[0]} must be between {low:g} and {high:g} in this model")
    if axis.field == "layer":
        if 0 in found:
            raise ValueError("layer 0 is the embedding of words, which has read no other token")
        found = [value if value > 0 else depth + 1 + value for value in found]
    return list(dict.fromkeys(found))
