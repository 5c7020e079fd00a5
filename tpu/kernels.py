"""What a custom call is charged: the compiler gives no estimate for one.

A kernel is charged max(FLOPs / peak, bytes / bandwidth) / 0.7, with the bytes of its operands and
results and the FLOPs that our own function counts from their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prompteol_jax import fused_attention
from tpu.chips import Chip
from tpu.hlo import Array, Instruction

EFFICIENCY: Final = 0.7
# Calls that give memory a name and move nothing.
IDLE: Final = frozenset(("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound"))


def seconds(instruction: Instruction, operand_bytes: int, chip: Chip) -> float | None:
    """Seconds of a custom call; None for one that nobody here can count."""
    if instruction.target in IDLE:
        return 0.0
    counted = next((f for name, f in FLOPS.items() if name in instruction.text), None)
    if counted is None:
        return None
    flops = counted(instruction.results)
    moved = operand_bytes + instruction.bytes
    return max(flops / chip.peak, moved / chip.bandwidth) / EFFICIENCY


def _attention(products: int) -> Callable[[tuple[Array, ...]], float]:
    def count(results: tuple[Array, ...]) -> float:
        B, width, T = results[0].shape
        return fused_attention.flops(B, T, width, products=products)

    return count


# The products of one head: scores and values forward; scores again and four gradients backward.
FLOPS: Final[Mapping[str, Callable[[tuple[Array, ...]], float]]] = {
    fused_attention.FORWARD: _attention(2),
    fused_attention.BACKWARD: _attention(5),
}
