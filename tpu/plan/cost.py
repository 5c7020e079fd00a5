"""Estimate the seconds of a compiled program.

The walk follows the schedule, and counts a loop body once, times its trips. Compute is the
compiler's `estimated_cycles` over the clock. Collectives have no estimate: `interconnect` gives
their time on the links. What is started and awaited later (`-start`, `-done`) costs only the time
that the instructions between do not cover; the links carry one collective at a time. The same holds
for a collective that libtpu divides among fusions that compute (a chain). Copies between HBM and
the core's memory that overlap with instructions are treated likewise, at the rate of HBM, and so is
a call of a SparseCore, which reads and writes there. A custom call (a Pallas kernel) has no
estimate either: `kernels` counts it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from typing import Any, Final

from tpu.chips import Topology
from tpu.plan import interconnect, kernels
from tpu.plan.hlo import Instruction, Program

# What takes no time: names, views, and the ends of what was started before.
FREE: Final = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier domain add-dependency".split()
)
COPIES: Final = frozenset(("copy-start", "slice-start", "dynamic-slice-start", "async-start"))


@dataclasses.dataclass
class Collective:
    """All collectives of one kind and source operation, per step and device."""

    kind: str
    source: str
    count: int | float = 0
    bytes: int | float = 0
    link_s: float = 0.0


@dataclasses.dataclass
class Cost:
    """Where the time of a step goes.

    Attributes:
        compute_s: Seconds of compute, by the compiler's estimates.
        collective_s: Seconds of waiting for the links, overlapped time left out.
        copy_s: Seconds of waiting for copies between HBM and the core's memory.
        kernel_s: Seconds of custom calls.
        link_s: Seconds in which the links are busy.
        unpriced: Runs of instructions without an estimate, by opcode.
    """

    compute_s: float = 0.0
    collective_s: float = 0.0
    copy_s: float = 0.0
    kernel_s: float = 0.0
    link_s: float = 0.0
    collectives: dict[tuple[str, str], Collective] = dataclasses.field(default_factory=dict)
    unpriced: dict[str, int | float] = dataclasses.field(default_factory=lambda: defaultdict(int))

    @property
    def total_s(self) -> float:
        """Estimated seconds of the program."""
        return self.compute_s + self.collective_s + self.copy_s + self.kernel_s

    def add(self, other: Cost, times: int | float = 1) -> None:
        """Add the cost of another part of the program, as often as it runs."""
        for name in ("compute_s", "collective_s", "copy_s", "kernel_s", "link_s"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for key, found in other.collectives.items():
            mine = self.collectives.setdefault(key, Collective(found.kind, found.source))
            mine.count += times * found.count
            mine.bytes += times * found.bytes
            mine.link_s += times * found.link_s
        for opcode, count in other.unpriced.items():
            self.unpriced[opcode] += times * count


def estimate(program: Program, topology: Topology, coordinates: interconnect.Coordinates) -> Cost:
    """Estimate a step of the program on one device of the slice.

    Args:
        coordinates: Coordinates of the mesh's devices, in their order.
    """
    return _Walk(program, topology, coordinates).cost(program.entry)


@dataclasses.dataclass
class _Pending:
    """A collective or copy in flight.

    Attributes:
        ends: Seconds on the clock of the walk at which its lane has finished it.
    """

    ends: float
    lane: str


class _Walk:
    def __init__(self, program: Program, topology: Topology, coordinates: interconnect.Coordinates):
        self.program, self.topology, self.coordinates = program, topology, coordinates

    def cost(self, name: str) -> Cost:
        """Return the cost of one computation."""
        total = Cost()
        free = {"link": 0.0, "hbm": 0.0}  # when each lane is free again
        pending: dict[str, _Pending] = {}
        bytes_of = self._bytes_of(name)
        for instruction in self.program.computations[name]:
            now = total.total_s
            chain = self._chain(instruction)
            if chain is not None and chain in pending:
                total.compute_s += (instruction.cycles or 0) / self.topology.chip.clock
                if _ends(instruction):
                    _await(pending.pop(chain), total)
            elif chain is not None or instruction.opcode.endswith("-start"):
                lane, seconds = self._started(instruction, bytes_of, total)
                free[lane] = max(now, free[lane]) + seconds
                pending[chain or instruction.name] = _Pending(free[lane], lane)
            elif instruction.opcode.endswith("-done"):
                ended = pending.pop(instruction.operands[0], None)
                if ended is not None:
                    _await(ended, total)
            else:
                self._finished(instruction, bytes_of, total)
        return total

    def _bytes_of(self, name: str) -> dict[str, int]:
        return {i.name: i.bytes for i in self.program.computations.get(name, ())}

    def _chain(self, instruction: Instruction) -> str | None:
        """Return the channel of a collective that libtpu divides among several fusions.

        A chain begins with a fusion `async-collective-start`, ends with `async-collective-done`,
        and the fusions between compute while it is in flight; each has the collective's text.
        """
        if instruction.opcode != "fusion":
            return None
        collective = self._collective_in(instruction)
        if collective is None or "chain_id=" not in collective.text:
            return None
        channel = re.search(r"channel_id=(\d+)", collective.text)
        return None if channel is None else f"channel {channel[1]}"

    def _started(
        self, instruction: Instruction, bytes_of: dict[str, int], total: Cost
    ) -> tuple[str, float]:
        """Return the lane and seconds of what overlaps with the instructions that follow."""
        collective = self._collective_in(instruction)
        if collective is not None:
            return "link", self._count(instruction, collective, bytes_of, total)
        if instruction.opcode == "call-start":  # a SparseCore changes an array's layout
            changed = [a.bytes for a in instruction.results if a.shape][-1:]
            return "hbm", 2 * sum(changed) / self.topology.chip.bandwidth
        if instruction.opcode not in COPIES:
            total.unpriced[instruction.opcode] += 1
            return "hbm", 0.0
        moved = [a.bytes for a in instruction.results if a.shape]
        # A started copy's result names source and target; the smaller is what is moved.
        return "hbm", min(moved, default=0) / self.topology.chip.bandwidth

    def _collective_in(self, instruction: Instruction) -> Instruction | None:
        """Return the collective that an instruction is or holds.

        A fusion `all-reduce-scatter` is a reduce-scatter, written as an all-reduce and a slice.
        """
        if interconnect.kind(instruction):
            return instruction
        called = instruction.called.get("calls", "")
        inner = self.program.computations.get(called, ())
        found = next((i for i in inner if interconnect.kind(i)), None)
        if found is None or not called.startswith("all-reduce-scatter"):
            return found
        source = found.source or instruction.source
        return dataclasses.replace(found, opcode="reduce-scatter", source=source)

    def _count(
        self,
        instruction: Instruction,
        collective: Instruction,
        bytes_of: dict[str, int],
        total: Cost,
    ) -> float:
        """Add a collective and return its seconds on the links."""
        if collective is not instruction:  # which may have other operands too
            bytes_of = self._bytes_of(instruction.called["calls"])
        operands = sum(bytes_of.get(name, 0) for name in collective.operands)
        seconds = interconnect.seconds(collective, operands, self.topology, self.coordinates)
        kind = interconnect.kind(collective)
        assert kind is not None  # `_collective_in` found one
        key = (kind, collective.source)
        counted = Collective(kind, collective.source, 1, operands, seconds)
        total.add(Cost(link_s=seconds, collectives={key: counted}))
        return seconds

    def _finished(self, instruction: Instruction, bytes_of: dict[str, int], total: Cost) -> None:
        """Add an instruction that ends before the next one begins."""
        opcode, called = instruction.opcode, instruction.called
        if opcode == "while":
            total.add(self.cost(called["body"]), self.program.trips(instruction))
        elif opcode == "call":
            total.add(self.cost(called["to_apply"]))
        elif opcode == "custom-call":
            seconds = kernels.seconds(instruction, self.topology.chip)
            if seconds is None:
                total.unpriced[f"custom-call {instruction.target}"] += 1
            else:
                total.kernel_s += seconds
        elif (collective := self._collective_in(instruction)) is not None:
            total.collective_s += self._count(instruction, collective, bytes_of, total)
            total.compute_s += (instruction.cycles or 0) / self.topology.chip.clock
        elif instruction.cycles is not None:
            total.compute_s += instruction.cycles / self.topology.chip.clock
        elif opcode not in FREE:
            total.unpriced[opcode] += 1


_WAITS: Final = {"link": "collective_s", "hbm": "copy_s"}


def _await(ended: _Pending, total: Cost) -> None:
    """Add the time until a lane has finished what was started."""
    waited: dict[str, Any] = {_WAITS[ended.lane]: max(0.0, ended.ends - total.total_s)}
    total.add(Cost(**waited))


def _ends(instruction: Instruction) -> bool:
    return instruction.name.startswith("async-collective-done")
