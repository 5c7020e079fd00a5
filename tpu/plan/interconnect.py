"""Compute how long a collective keeps the links of a slice busy.

A group of chips counts as the smallest box of the slice that holds it. The box has a ring where a
path from neighbor to neighbor visits all its chips and returns to the first; a ring carries data
both ways at the same time. With n chips and b bytes of the whole array:

    all-gather, reduce-scatter   (n - 1) / n * b      all-to-all           (n - 1) / n * b / 2
    all-reduce                   2 (n - 1) / n * b    collective-permute   b

over the rate of one link on a line of chips, of two links on a ring, and of two links per wrapped
axis on a torus. Groups that have one of a chip's two devices each share its links. The two devices
of a chip count as joined by one link, although theirs is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tpu.chips import Topology
from tpu.plan.hlo import Instruction, groups

KINDS: Final = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "ragged-all-to-all",
)
Coordinates = Sequence[tuple[int, ...]]


def kind(instruction: Instruction) -> str | None:
    """Return the kind of a collective or of its start; None for another instruction."""
    name = instruction.opcode.removesuffix("-start")
    return name if name in KINDS else None


def whole_bytes(instruction: Instruction, operand_bytes: int, size: int) -> int:
    """Return the bytes of the whole array that a collective of `size` devices moves."""
    kind_ = kind(instruction)
    if kind_ == "all-gather":
        return operand_bytes * size
    return operand_bytes


def seconds(
    instruction: Instruction, operand_bytes: int, topology: Topology, coordinates: Coordinates
) -> float:
    """Return the seconds of a collective on the links.

    Args:
        coordinates: Coordinates of the mesh's devices, in their order.
    """
    joined = groups(instruction)
    if kind(instruction) == "collective-permute":
        far = max(
            (max(1, _distance(coordinates[a], coordinates[b])) for a, b in joined if a != b),
            default=0,
        )
        return far * operand_bytes / topology.chip.link
    n = max(map(len, joined), default=1)
    if n < 2:
        return 0.0
    share = (n - 1) / n * whole_bytes(instruction, operand_bytes, n)
    factor = {"all-reduce": 2.0, "all-to-all": 0.5}.get(kind(instruction) or "", 1.0)
    links = min(_links(topology, [coordinates[i] for i in group]) for group in joined)
    return factor * share / (links * topology.chip.link)


def _links(topology: Topology, group: Coordinates) -> float:
    """Count the links of each chip that a ring algorithm over the group keeps busy."""
    share = len(group) / (len(set(group)) * topology.chip.devices)
    return share * _links_of_chips(topology, group)


def _links_of_chips(topology: Topology, group: Coordinates) -> int:
    extents = [len({chip[axis] for chip in group}) for axis in range(len(topology.shape))]
    wide = [axis for axis, extent in enumerate(extents) if extent > 1]
    closed = [a for a in wide if extents[a] == topology.shape[a] and topology.ring(a)]
    if not wide:
        return 1
    if len(closed) == len(wide):
        return 2 * len(wide)
    # A box of two axes, one of an even number of chips, holds a ring through all of them.
    around = len(wide) > 1 and any(extents[axis] % 2 == 0 for axis in wide)
    return 2 if closed or around else 1


def _distance(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))
