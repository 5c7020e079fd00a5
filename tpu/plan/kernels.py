"""Estimate custom calls, for which the compiler has no estimate.

A kernel takes max(FLOP / peak, bytes / bandwidth) / 0.7 seconds, with the bytes of its operands and
results and the FLOP that its module in `ops` counts from their shapes.

That of long rows does more on the vector units than on the matrix units of the fastest chips, that
of nf4 nothing but. They take max(FLOP / peak, bytes / bandwidth, operations of the vector units /
their rate) / 0.7 seconds, the first also a number of cycles for each block of queries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from prompteol_jax.ops import attention_tpu, long_attention_tpu, lora_tpu, nf4_tpu, norm_tpu
from prompteol_jax.ops.kernel import LANES
from tpu.chips import Chip
from tpu.plan.hlo import Array, Instruction, arrays

EFFICIENCY: Final = 0.7
# Calls that name memory, or what is called later, and move nothing.
IDLE: Final = frozenset(
    "ConcatBitcast AllocateBuffer AssumeGatherIndicesInBound PrepareAsyncCallStart "
    "PrepareAsyncCallDone".split()
)


class Work(NamedTuple):
    """What a call does.

    Attributes:
        bytes: Bytes between HBM and the core.
        vector: Operations of the vector units, each on one number.
        cycles: Cycles in which neither works.
    """

    flops: int
    bytes: int
    vector: int = 0
    cycles: int = 0


def seconds(instruction: Instruction, chip: Chip) -> float | None:
    """Return the seconds of a custom call; None for one that has no counter."""
    if instruction.target in IDLE:
        return 0.0
    counted = next((f for name, f in WORK.items() if name in instruction.source), None)
    if counted is None:
        return None
    layouts = re.search(r"operand_layout_constraints=\{(.*?\})\}", instruction.text)
    assert layouts is not None  # every custom call of libtpu states them
    work = counted(instruction, arrays(layouts[1]))
    vector = work.vector / (chip.vector * chip.clock)
    busy = max(work.flops / chip.peak, work.bytes / chip.bandwidth, vector) / EFFICIENCY
    return busy + work.cycles / chip.clock


def _split(operands: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the stacks, as many as the first operand lists layers, and the other operands."""
    at, *rest = operands
    count = at.shape[0]
    return tuple(rest[:count]), tuple(rest[count:])


Count = Callable[[tuple[Array, ...], tuple[Array, ...]], int]  # FLOP, of operands and results
Counter = Callable[[Instruction, tuple[Array, ...]], Work]  # of a call and its operands


def _once(count: Count) -> Counter:
    """Return the counter of a kernel of ours, which moves a layer of each stack."""

    def counter(call: Instruction, operands: tuple[Array, ...]) -> Work:
        parts, others = _split(operands)
        moved = sum(part.bytes // part.shape[0] for part in parts)
        moved += sum(array.bytes for array in others) + call.bytes
        return Work(count(operands, call.results), moved)

    return counter


def _attention(backward: bool) -> Count:
    def count(operands: tuple[Array, ...], results: tuple[Array, ...]) -> int:
        B, width, T = results[0].shape
        return attention_tpu.flops(B, T, width, backward=backward)

    return count


def _update(backward: bool) -> Count:
    def count(operands: tuple[Array, ...], results: tuple[Array, ...]) -> int:
        (_, *factors), (*_, words) = _split(operands)
        a, *_ = factors
        outputs = tuple(b.shape[2] for b in factors[len(factors) // 2 :])
        tokens, (R, inputs) = words.shape[0] * words.shape[2], a.shape[1:]
        return lora_tpu.flops(tokens, R, inputs, outputs, backward=backward)

    return count


def _none(operands: tuple[Array, ...], results: tuple[Array, ...]) -> int:
    return 0


def _nf4(call: Instruction, operands: tuple[Array, ...]) -> Work:
    weights = math.prod(call.results[0].shape)
    return _once(_none)(call, operands)._replace(vector=weights * nf4_tpu.VECTOR_OPERATIONS)


def _long_attention(call: Instruction, operands: tuple[Array, ...]) -> Work:
    """Count the blocks of long rows that are not masked."""
    (B, width, T), last = operands[0].shape, operands[-1].shape
    C = last[0] if len(last) == 2 else 0
    H = long_attention_tpu.head_width(call.source)
    heads = B * width // H
    scores = long_attention_tpu.scores(heads, T, C)
    return Work(
        flops=4 * max(H, LANES) * scores,  # narrow heads take as long
        bytes=sum(array.bytes for array in operands) + call.bytes,
        vector=scores * long_attention_tpu.vector_operations(H),
        cycles=heads * T // long_attention_tpu.BLOCK * long_attention_tpu.BLOCK_CYCLES,
    )


WORK: Final[Mapping[str, Counter]] = {
    attention_tpu.FORWARD: _once(_attention(backward=False)),
    attention_tpu.BACKWARD: _once(_attention(backward=True)),
    long_attention_tpu.FORWARD: _long_attention,
    lora_tpu.FORWARD: _once(_update(backward=False)),
    lora_tpu.BACKWARD: _once(_update(backward=True)),
    nf4_tpu.NAME: _nf4,
    norm_tpu.FORWARD: _once(_none),
    norm_tpu.BACKWARD: _once(_none),
}
