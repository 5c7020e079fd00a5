"""Vectors in `.npy` files, read as data: the header is checked before memory is taken."""

from __future__ import annotations

import tokenize
from typing import Any

import numpy as np

from prompteol_jax.errors import UserError


def read_array(path: Any, shape: tuple[int, int]) -> np.ndarray:
    """Read a float32 array of a known shape.

    Raises: OSError where the file cannot be read; UserError where it holds anything else.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0}
            readers[(2, 0)] = np.lib.format.read_array_header_2_0
            found, is_fortran, dtype = readers[version](file)
        except (ValueError, LookupError, TypeError, SyntaxError, tokenize.TokenError) as error:
            raise UserError(f"{path} is no array of vectors: {error!s:.200}") from error
        if found != shape or is_fortran or dtype != np.dtype("<f4"):
            raise UserError(
                f"{path} holds {dtype} {found!s:.80}, not the float32 {shape} of its manifest"
            )
        content = file.read(4 * shape[0] * shape[1] + 1)
    if len(content) != 4 * shape[0] * shape[1]:
        raise UserError(f"{path} has not as many bytes as its header says: it is damaged")
    return np.frombuffer(content, "<f4").reshape(shape)
