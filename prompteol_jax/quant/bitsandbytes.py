"""Weights into few bits, on the host, bit for bit as bitsandbytes does it on a CPU.

The order of operations is that of bitsandbytes 0.50 (`quantize_4bit` with compressed statistics,
`int8_vectorwise_quant`) and of torch's sum on one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from prompteol_jax.errors import UserError
from prompteol_jax.ops.nf4 import BLOCK, LEVELS
from prompteol_jax.quant.formats import GROUP, SCALE_LEVELS, Kind
from prompteol_jax.quant.torch_sum import torch_mean

_TILE: Final = 2**16  # numbers per step, which stay in cache
_TINY: Final = np.float32(1e-38)
_LUT: Final = 65536  # entries of bitsandbytes' table of scales, from -1 to 1


def quantize(
    kind: Kind, matrix: Shaped[np.ndarray, "rows columns"], name: str, rows: slice = slice(None)
) -> dict[str, np.ndarray]:
    """Quantize a weight, given as the matrix of its file, into the arrays of `quant.Nf4` or `Int8`.

    The codes of nf4 are flat and padded to full blocks; the caller gives them their shape.

    Args:
        rows: those of the weight, where the matrix holds several weights. They get the numbers that
            they have in the whole matrix, but nf4 rows that would divide a group of scales are
            quantized like a matrix without the others.
    Raises: UserError naming a tensor that holds NaN or infinity.
    """
    whole, matrix = matrix, matrix[rows]
    parts = _nf4(matrix.reshape(-1)) if kind == "nf4" else _int8(matrix)
    scales = parts.pop("scales") if kind == "nf4" else parts["peaks"]
    if not np.isfinite(scales).all():
        raise UserError(
            f"tensor {name!r} holds NaN or infinity (in the file: {matrix.dtype}). "
            "The checkpoint is damaged."
        )
    if kind == "int8":
        return parts
    shares_offset = matrix.shape != whole.shape and _divides_no_group(whole, rows)
    peaks = _peaks(whole.reshape(-1)) if shares_offset else scales
    return parts | double_quantize(scales, torch_mean(peaks))


def _divides_no_group(matrix: np.ndarray, rows: slice) -> bool:
    """Return whether rows begin and end where groups of scales do, as does the matrix."""
    first, end, _ = rows.indices(len(matrix))
    columns, group = matrix.shape[1], BLOCK * GROUP
    return matrix.size % BLOCK == 0 and first * columns % group == end * columns % group == 0


def _peaks(flat: Shaped[np.ndarray, " n"]) -> Float32[np.ndarray, " blocks"]:
    """Return the largest magnitude of each block of a tensor that is whole blocks."""
    tiles = (flat[start : start + _TILE] for start in range(0, flat.size, _TILE))
    return np.concatenate(
        [np.abs(np.asarray(tile, np.float32)).reshape(-1, BLOCK).max(axis=1) for tile in tiles]
    )


def _nf4(flat: Shaped[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    blocks = -(-flat.size // BLOCK)
    codes = np.zeros(blocks * BLOCK // 2, np.uint8)
    scales = np.empty(blocks, np.float32)

    def tile(start: int) -> None:
        part = np.asarray(flat[start : start + _TILE], np.float32)
        whole = part.size // BLOCK
        first = start // BLOCK
        rows = part[: whole * BLOCK].reshape(whole, BLOCK)
        scales[first : first + whole] = np.abs(rows).max(axis=1, initial=0)
        inverse = np.float32(1) / np.maximum(scales[first : first + whole], _TINY)
        scaled = [(rows * inverse[:, None]).reshape(-1)]
        rest = part[whole * BLOCK :]
        if rest.size:  # the last block of a tensor is divided, not multiplied
            scales[-1] = np.maximum(np.abs(rest).max(), _TINY)
            scaled += [rest / scales[-1], np.zeros(rest.size % 2, np.float32)]
        packed = _packed(np.concatenate(scaled))
        codes[start // 2 : start // 2 + packed.size] = packed

    _over_tiles(tile, flat.size)
    return {"codes": codes, "scales": scales}


def _packed(scaled: Float32[np.ndarray, " n"]) -> UInt8[np.ndarray, " half"]:
    """The nearest level of each number, of two levels equally near the lower one; two in a byte."""
    codes = np.zeros(scaled.size, np.uint8)
    for border in (LEVELS[:-1] + LEVELS[1:]) / np.float32(2):
        codes += scaled > border
    return codes[::2] << 4 | codes[1::2]


def _int8(matrix: Shaped[np.ndarray, "rows columns"]) -> dict[str, np.ndarray]:
    rows, columns = matrix.shape
    codes = np.empty((rows, columns), np.int8)
    peaks = np.empty((rows, 1), np.float32)
    at_once = max(1, _TILE // columns)

    def tile(start: int) -> None:
        part = np.asarray(matrix[start : start + at_once], np.float32)
        peak = np.abs(part).max(axis=1, keepdims=True)
        peaks[start : start + at_once] = peak
        # A row of zeros has no scale: its codes are zeros, which bitsandbytes leaves undefined.
        inverse = np.where(peak > 0, np.float32(1) / np.maximum(peak, _TINY), np.float32(0))
        codes[start : start + at_once] = np.rint(part * (inverse * np.float32(127)))

    _over_tiles(tile, rows, at_once)
    return {"codes": codes, "peaks": peaks}


def _over_tiles(tile: Callable[[int], None], size: int, step: int = _TILE) -> None:
    def quietly(start: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused later
            tile(start)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(quietly, range(0, size, step)):
            pass


def double_quantize(scales: Float32[np.ndarray, " blocks"], offset: np.float32) -> dict[str, Any]:
    """Quantize the scales of a tensor, less their mean: codes, steps and that offset."""
    blocks = scales.size
    shifted = np.zeros((-(-blocks // GROUP), GROUP), np.float32)
    shifted.reshape(-1)[:blocks] = scales - offset
    steps = np.abs(shifted).max(axis=1)
    inverse = np.float32(1) / np.where(steps > 0, steps, 1)
    scaled = np.clip(shifted * inverse[:, None], -1, 1)
    half, last = np.float32(0.5), np.float32(_LUT - 1)
    entry = ((scaled + np.float32(1)) * half * last + half).astype(np.int32)
    codes = np.where(steps[:, None] > 0, _nearest_levels()[entry], 0).astype(np.uint8)
    return {"scale_codes": codes.reshape(-1)[:blocks], "steps": steps, "offset": offset}


@functools.cache
def _nearest_levels() -> UInt8[np.ndarray, "65536"]:
    """The nearest of SCALE_LEVELS for each entry of the table."""
    wide = SCALE_LEVELS.astype(np.float64)
    entries = np.linspace(-1, 1, _LUT)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, entries).astype(np.uint8)
