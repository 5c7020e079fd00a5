"""The optimized HLO text of a compiled program, as instructions in the order they are scheduled.

It reads what a plan needs: shapes, operands, called computations, the devices that a collective
joins, and the compiler's `estimated_cycles`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from prompteol_jax.errors import UserError

BITS: Final = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32},
    **{"s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32},
    **{"f64": 64, "c64": 64, "token": 0},
}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result.

    Attributes:
        fast: Whether the array is in the core's own memory, not in HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    fast: bool

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One scheduled instruction.

    Attributes:
        cycles: Cycles as the compiler estimates them; None where it does not.
        called: Names of the computations that it runs, by role: calls, body, condition, to_apply.
        source: Operation of the traced program that it came from.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    cycles: int | None
    called: Mapping[str, str]
    source: str
    text: str

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.results)

    @property
    def target(self) -> str:
        """The kernel that a custom call names."""
        found = re.search(r'custom_call_target="([^"]*)"', self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a module by name; `entry` names the one that is run."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """Return how often the body of a while runs: its condition counts from 0 up to a constant.

        Raises: UserError where the condition has another form.
        """
        condition = self.computations[loop.called["condition"]]
        compares = [i for i in condition if i.opcode in ("compare", "fusion")]
        constants = [i.text for i in condition if i.opcode == "constant"]
        limits = [int(m[1]) for text in constants if (m := re.match(r"\((\d+)\)", text))]
        if len(compares) != 1 or len(limits) != 1:
            raise UserError(f"the trip count of {loop.name} cannot be read from its condition")
        return limits[0]


# The metadata of a Pallas kernel goes over several lines.
_CONTINUED: Final = re.compile(r'\n(?="|\}\})')


def parse(text: str) -> Program:
    """Read `compiled.as_text()`."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, body = "", "", []
    for line in _CONTINUED.sub("", text).splitlines():
        if head := re.match(r"(ENTRY )?%([^\s(]+) \(.*\{$", line):
            name, body = head[2], []
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name], name = tuple(body), ""
        elif name and (found := re.match(r"\s+(?:ROOT )?%([^\s=]+) = (.*)", line)):
            body.append(_instruction(found[1], found[2]))
    if not entry:
        raise UserError("the text holds no ENTRY computation: is it optimized HLO?")
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end + 1)
    closing = _closing(text, opening)
    attributes = text[closing + 1 :]
    cycles = re.search(r'"estimated_cycles":"(\d+)"', attributes)
    source = re.search(r'op_name="([^"]*)"', attributes)
    return Instruction(
        name=name,
        opcode=text[end:opening].strip(),
        results=arrays(text[:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", text[opening:closing])),
        cycles=int(cycles[1]) if cycles else None,
        called=dict(re.findall(r"\b(calls|body|condition|to_apply)=%([\w.\-]+)", attributes)),
        source=source[1] if source else "",
        text=text[opening:],
    )


def arrays(shape: str) -> tuple[Array, ...]:
    """Read the arrays of a shape or a tuple of shapes."""
    found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", shape)
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(1)" in layout)
        for dtype, dims, layout in found
        if dtype in BITS
    )


def _closing(text: str, opening: int) -> int:
    """Return the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise UserError(f"unbalanced parentheses in {text[:80]!r}")


def groups(instruction: Instruction) -> list[list[int]]:
    """Return the devices, by number in the mesh, that a collective joins; pairs for a permutation.

    Raises: UserError for a notation that is not understood.
    """
    for pattern, parse_groups in _NOTATIONS.items():
        if found := re.search(pattern, instruction.text):
            return parse_groups(found)
    raise UserError(f"{instruction.name}: its replica groups are not understood")


def _listed_groups(found: re.Match[str]) -> list[list[int]]:
    """Read `{{0,2},{1,3}}`."""
    listed = re.findall(r"\{([\d,]*)\}", found[1])
    return [[int(n) for n in group.split(",") if n] for group in listed]


def _iota_groups(found: re.Match[str]) -> list[list[int]]:
    """Read `[4,2]<=[2,4]T(1,0)`: 4 groups of 2 out of 2 x 4 devices, their axes reordered."""
    size, flat = int(found[1]), _transposed(_numbers(found[2]), found[3])
    return [flat[at : at + size] for at in range(0, len(flat), size)]


def _mesh_groups(found: re.Match[str]) -> list[list[int]]:
    """Read `mesh['a'=4,'b'=2] {'b'}`: groups along the axes in braces, of devices in an order."""
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    shape = [int(n) for n in sizes.values()]
    devices = _transposed(_numbers(found[2] or str(math.prod(shape))), found[3])
    joined = [list(sizes).index(axis) for axis in re.findall(r"'([^']+)'", found[4])]
    rest = [axis for axis in range(len(shape)) if axis not in joined]
    order = _transposed(shape, ",".join(map(str, rest + joined)))
    size = math.prod(shape[axis] for axis in joined)
    flat = [devices[position] for position in order]
    return [flat[at : at + size] for at in range(0, len(flat), size)]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _transposed(shape: list[int], order: str | None) -> list[int]:
    """Lay the numbers 0, 1, ... out as `shape`, reorder its axes, and return them row by row."""
    axes = _numbers(order) if order else list(range(len(shape)))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    found = [0]
    for axis in axes:
        found = [number + n * strides[axis] for number in found for n in range(shape[axis])]
    return found


# The notations that XLA has for the devices of a collective, each with its reader.
_NOTATIONS: Final[Mapping[str, Callable[[re.Match[str]], list[list[int]]]]] = {
    r"source_target_pairs=\{(\{.*?\})\}": _listed_groups,
    r"replica_groups=\{(\{.*?\})\}": _listed_groups,
    r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?": _iota_groups,
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"\{(.*?)\}": _mesh_groups,
}
