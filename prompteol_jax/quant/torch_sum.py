"""The mean of many numbers, added in the order in which torch adds them on one thread of a CPU."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float32

_LANES: Final = 8  # numbers in a vector
_ILP: Final = 4  # vectors that are added in turn
_DEPTH: Final = 4  # levels of the cascade


def torch_mean(x: Float32[np.ndarray, " n"]) -> np.float32:
    """Return the mean of numbers; its last bit decides codes of scales.

    Source: aten/src/ATen/native/cpu/SumKernel.cpp.
    """
    vectors = x[: x.size // _LANES * _LANES].reshape(-1, _LANES)
    rows = len(vectors) // _ILP
    total = _cascade(vectors[: rows * _ILP].reshape(rows, _ILP, _LANES))
    for vector in vectors[rows * _ILP :]:
        total[0] += vector
    for vector in total[1:]:
        total[0] += vector
    scalar = np.float32(0)
    for number in (*x[len(vectors) * _LANES :], *total[0]):
        scalar = np.float32(scalar + number)
    return np.float32(scalar / np.float32(x.size))


def _cascade(rows: Float32[np.ndarray, "n ilp lanes"]) -> Float32[np.ndarray, "ilp lanes"]:
    """Return the sum of rows, cascading: each level takes up the sum of the level below it."""
    power = max(4, (max(len(rows), 1) - 1).bit_length() // _DEPTH)
    step = 1 << power
    groups = len(rows) // step
    inner = np.zeros((groups, *rows.shape[1:]), np.float32)
    for row in range(step):
        inner += rows[row : groups * step : step]
    sums = np.zeros((_DEPTH, *rows.shape[1:]), np.float32)
    for group in range(groups):
        sums[0] = inner[group]
        for level in range(1, _DEPTH):
            sums[level] += sums[level - 1]
            sums[level - 1] = 0
            if (group + 1) * step & (step - 1) << level * power:
                break
    for row in rows[groups * step :]:
        sums[0] += row
    for level in range(1, _DEPTH):
        sums[0] += sums[level]
    return sums[0]
