"""Dequantization of nf4 as a TPU kernel.

XLA takes about as long as for the product of the weights with 3,400 tokens. Here the permutation of
the vector units does what is hard: it spreads bytes to pairs of lanes, four rows in one word, and
looks weights up. A register holds the 16 levels of eight blocks, times their scales. The numbers
are those of the reference, bit for bit. See decisions/074.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from prompteol_jax.ops.kernel import LANES, kernel_call
from prompteol_jax.ops.layer_slice import unstacked
from prompteol_jax.ops.nf4 import BLOCK, LEVELS
from prompteol_jax.ops.scan import Saved

NAME: Final = "nf4_dequantize"
# What a weight costs the vector units: libtpu's schedules have 4.9 (v6e) to 5.5 (v5p) cycles, of
# four operations each, for 1,024 weights; rounded up to 6.
VECTOR_OPERATIONS: Final = 24
_BLOCKS: Final = LANES // len(LEVELS)  # whose levels a register holds
_COLUMNS: Final = _BLOCKS * BLOCK  # of a program
_ROWS: Final = 2048  # of a program, at most
_AT_ONCE: Final = 1024  # rows, so that the permutations of some hide the latency of others


def supports(codes: Saved, scales: jax.Array, dtype: Any) -> str | None:
    """Return why the kernel cannot run: it takes whole tiles of bytes."""
    rows, columns = codes.value.shape[0], 2 * codes.value.shape[1]
    if rows % 32 or columns % 256:
        return f"not supported: {rows} rows of {columns} weights, no multiples of 32 and 256"
    return None


def dequantize(
    codes: Saved,
    scales: Float[Array, "rows blocks"],
    dtype: Any,
    *,
    interpret: bool = False,
) -> Float[Array, "rows columns"]:
    """Return the weights; see `nf4.dequantize`.

    Args:
        interpret: run the kernel's program step by step, on any device.
    """
    rows, columns = len(codes.value), 2 * codes.value.shape[1]
    rows_each = min(_ROWS, 1 << (rows.bit_length() - 1))
    scales = jnp.pad(scales, ((0, 0), (0, -scales.shape[1] % LANES)))
    levels = jnp.tile(jnp.asarray(LEVELS), _BLOCKS)[None]
    programs = LANES // _BLOCKS  # that share a register of scales
    return kernel_call(
        functools.partial(_program, min(_AT_ONCE, rows_each)),
        [codes.slice or unstacked(codes.value)],
        [scales, levels],
        out_shape=jax.ShapeDtypeStruct((rows, columns), dtype),
        grid=(pl.cdiv(rows, rows_each), pl.cdiv(columns, _COLUMNS)),
        in_specs=[
            pl.BlockSpec((rows_each, _COLUMNS // 2), lambda i, j: (i, j)),
            pl.BlockSpec((rows_each, LANES), lambda i, j: (i, jax.lax.div(j, programs))),
            pl.BlockSpec((1, LANES), lambda i, j: (0, 0)),
        ],
        out_specs=pl.BlockSpec((rows_each, _COLUMNS), lambda i, j: (i, j)),
        name=NAME,
        interpret=interpret,
        cost_estimate=pl.CostEstimate(
            flops=VECTOR_OPERATIONS * rows * columns,
            bytes_accessed=rows * columns * (1 + 2 * jnp.dtype(dtype).itemsize) // 2,
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    )


def _program(at_once: int, codes_ref: Any, scales_ref: Any, levels_ref: Any, out_ref: Any) -> None:
    quarter = at_once // 4
    lane = jax.lax.broadcasted_iota(jnp.int32, (quarter, LANES), 1)
    levels = jnp.broadcast_to(levels_ref[...], lane.shape)
    first = jax.lax.rem(pl.program_id(1), LANES // _BLOCKS) * _BLOCKS
    shift = 4 - 4 * (lane & 1)

    @pl.loop(0, codes_ref.shape[0] // at_once)
    def _(step: Any) -> None:
        quarters = [pl.ds(step * at_once + n * quarter, quarter) for n in range(4)]
        scaled = [_take(scales_ref[rows], first + (lane >> 4)) * levels for rows in quarters]
        for start in range(0, _COLUMNS, LANES):
            half = start // 2 % LANES  # the bytes of these weights are half a register
            if half == 0:
                columns = slice(start // 2, start // 2 + LANES)
                words = _words([codes_ref[rows, columns] for rows in quarters])
            pairs = _take(words, half + (lane >> 1))
            block = start // BLOCK + (lane >> 6)
            for n, rows in enumerate(quarters):
                code = (pairs >> (shift + 8 * n)) & 15
                weights = _take(scaled[n], block * len(LEVELS) + code)
                out_ref[rows, start : start + LANES] = weights.astype(out_ref.dtype)


def _words(parts: list[Any]) -> Any:
    """Return four arrays of bytes as one of words, so that one permutation moves them all."""
    first, *rest = (part.astype(jnp.int32) for part in parts)
    for n, part in enumerate(rest, start=1):
        first = first | (part << (8 * n))
    return first


def _take(numbers: Any, lanes: Any) -> Any:
    """Return, for every lane, the number of its row in another lane."""
    return jnp.take_along_axis(numbers, lanes, axis=1, mode="promise_in_bounds")
