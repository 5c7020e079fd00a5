"""Estimate custom calls, for which the compiler has no estimate.

A kernel takes max(FLOP / peak, bytes / bandwidth) / 0.7 seconds, with the bytes of its operands and
results and the FLOP that its module in `ops` counts from their shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from prompteol_jax.ops import attention_tpu, lora_tpu, norm_tpu
from tpu.chips import Chip
from tpu.plan.hlo import Array, Instruction, arrays

EFFICIENCY: Final = 0.7
# Calls that name memory and move nothing.
IDLE: Final = frozenset(("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound"))


def seconds(instruction: Instruction, chip: Chip) -> float | None:
    """Return the seconds of a custom call; None for one that has no counter."""
    if instruction.target in IDLE:
        return 0.0
    counted = next((f for name, f in FLOPS.items() if name in instruction.source), None)
    if counted is None:
        return None
    layouts = re.search(r"operand_layout_constraints=\{(.*?\})\}", instruction.text)
    assert layouts is not None  # every custom call of libtpu states them
    operands = arrays(layouts[1])
    parts, others = _split(operands)
    flops = counted(operands, instruction.results)
    moved = sum(part.bytes // part.shape[0] for part in parts)  # one layer of a stack
    moved += sum(array.bytes for array in others) + instruction.bytes
    return max(flops / chip.peak, moved / chip.bandwidth) / EFFICIENCY


def _split(operands: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the stacks, as many as the first operand lists layers, and the other operands."""
    at, *rest = operands
    count = at.shape[0]
    return tuple(rest[:count]), tuple(rest[count:])


Count = Callable[[tuple[Array, ...], tuple[Array, ...]], int]  # FLOP, of operands and results


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


FLOPS: Final[Mapping[str, Count]] = {
    attention_tpu.FORWARD: _attention(backward=False),
    attention_tpu.BACKWARD: _attention(backward=True),
    lora_tpu.FORWARD: _update(backward=False),
    lora_tpu.BACKWARD: _update(backward=True),
    norm_tpu.FORWARD: _none,
    norm_tpu.BACKWARD: _none,
}
