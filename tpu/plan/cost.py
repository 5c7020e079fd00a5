"""Seconds of a compiled program: the compiler's cycles, and what it gives no estimate for.

Instructions are gone through in the order they are scheduled, loop bodies once and times their
trips. Compute is the compiler's `estimated_cycles` over the clock. Collectives carry no estimate:
their time on the links (`links`) is added. What is started and waited for later (`-start` and
`-done`) waits only for what the instructions between them have not covered, the links carrying one
collective at a time. Copies between HBM and the core's memory that run beside the instructions are
treated likewise, at the rate of HBM. A custom call (a Pallas kernel) carries no estimate either:
it is charged what `kernels` counts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Final

from tpu.chips import Topology
from tpu.plan import interconnect, kernels
from tpu.plan.hlo import Instruction, Program

# What takes no time of its own: names, views, and the ends of what was started before.
FREE: Final = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier domain add-dependency".split()
)
COPIES: Final = frozenset(("copy-start", "slice-start", "dynamic-slice-start", "async-start"))


@dataclasses.dataclass
class Collective:
    """All collectives of one kind and place in the program, a step and device."""

    kind: str
    source: str
    count: int = 0
    bytes: int = 0
    link_s: float = 0.0


@dataclasses.dataclass
class Cost:
    """Where the time of a step goes.

    Attributes:
        compute_s: by the compiler's estimates.
        collective_s: waits for the links, what is overlapped left out; link_s: links busy.
        copy_s: waits for copies between HBM and the core's memory.
        kernel_s: custom calls.
        unpriced: runs of instructions without any estimate, by opcode.
    """

    compute_s: float = 0.0
    collective_s: float = 0.0
    copy_s: float = 0.0
    kernel_s: float = 0.0
    link_s: float = 0.0
    collectives: dict[tuple[str, str], Collective] = dataclasses.field(default_factory=dict)
    unpriced: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def total_s(self) -> float:
        """Estimated seconds of the program."""
        return self.compute_s + self.collective_s + self.copy_s + self.kernel_s

    def add(self, other: Cost, times: int | float = 1) -> None:
        """Count another stretch of the program in, as often as it runs."""
        for name in ("compute_s", "collective_s", "copy_s", "kernel_s", "link_s"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for key, found in other.collectives.items():
            mine = self.collectives.setdefault(key, Collective(found.kind, found.source))
            mine.count += times * found.count
            mine.bytes += times * found.bytes
            mine.link_s += times * found.link_s
        for opcode, count in other.unpriced.items():
            self.unpriced[opcode] += times * count


def estimate(program: Program, topology: Topology, places: interconnect.Coordinates) -> Cost:
    """Estimate a step of the program on one device of the slice."""
    return _Walk(program, topology, places).cost(program.entry)


@dataclasses.dataclass
class _Pending:
    """Something under way: when its lane is through with it, on the clock of the walk."""

    ends: float
    lane: str


class _Walk:
    def __init__(self, program: Program, topology: Topology, places: interconnect.Coordinates):
        self.program, self.topology, self.places = program, topology, places

    def cost(self, name: str) -> Cost:
        """The cost of one computation."""
        total = Cost()
        free = {"link": 0.0, "hbm": 0.0}  # when each lane is free again
        pending: dict[str, _Pending] = {}
        bytes_of = {i.name: i.bytes for i in self.program.computations[name]}
        for instruction in self.program.computations[name]:
            now = total.total_s
            if started := self._started(instruction, bytes_of, total):
                lane, seconds = started
                free[lane] = max(now, free[lane]) + seconds
                pending[instruction.name] = _Pending(free[lane], lane)
            elif instruction.opcode.endswith("-done"):
                ended = pending.pop(instruction.operands[0], None)
                if ended is not None:
                    wait = max(0.0, ended.ends - now)
                    total.add(Cost(**{_WAITS[ended.lane]: wait}))
            else:
                self._at_once(instruction, bytes_of, total)
        return total

    def _started(
        self, instruction: Instruction, bytes_of: dict[str, int], total: Cost
    ) -> tuple[str, float] | None:
        """The lane and seconds of what runs beside the instructions that follow."""
        if not instruction.opcode.endswith("-start"):
            return None
        collective = self._collective_in(instruction)
        operands = sum(bytes_of.get(name, 0) for name in instruction.operands)
        if collective is not None:
            return "link", self._count(collective, operands, total)
        if instruction.opcode not in COPIES:
            total.unpriced[instruction.opcode] += 1
            return "hbm", 0.0
        moved = [a.bytes for a in instruction.results if a.shape]
        # A started copy's result names source and target; the smaller is what is moved.
        return "hbm", min(moved, default=0) / self.topology.chip.bandwidth

    def _collective_in(self, instruction: Instruction) -> Instruction | None:
        if interconnect.kind(instruction):
            return instruction
        inner = self.program.computations.get(instruction.called.get("calls", ""), ())
        return next((i for i in inner if interconnect.kind(i)), None)

    def _count(self, collective: Instruction, operands: int, total: Cost) -> float:
        """Book a collective and return its seconds on the links."""
        seconds = interconnect.seconds(collective, operands, self.topology, self.places)
        kind = interconnect.kind(collective)
        key = (kind, collective.source)
        booked = Collective(kind, collective.source, 1, operands, seconds)
        total.add(Cost(link_s=seconds, collectives={key: booked}))
        return seconds

    def _at_once(self, instruction: Instruction, bytes_of: dict[str, int], total: Cost) -> None:
        opcode, called = instruction.opcode, instruction.called
        operands = sum(bytes_of.get(name, 0) for name in instruction.operands)
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
            total.collective_s += self._count(collective, operands, total)
            total.compute_s += (instruction.cycles or 0) / self.topology.chip.clock
        elif instruction.cycles is not None:
            total.compute_s += instruction.cycles / self.topology.chip.clock
        elif opcode not in FREE:
            total.unpriced[opcode] += 1


_WAITS: Final = {"link": "collective_s", "hbm": "copy_s"}
