"""Vectors in `.npy` files, read as data: the header is checked before memory is taken."""

from __future__ import annotations

import tokenize
from typing import Any, Final

import numpy as np

from prompteol_jax.errors import NotFinite, UserError
from prompteol_jax.storage import atomic

DTYPES: Final = {"float32": "<f4", "float16": "<f2"}  # by name, in their order of bytes


def write_array(path: Any, vectors: np.ndarray, dtype: str = "float32") -> None:
    """Write float32 vectors as an array of another dtype, whole or not at all.

    Raises: CannotWrite if the disk refuses; NotFinite where a number is too large for the dtype.
    """
    with np.errstate(over="ignore"):
        kept = vectors.astype(DTYPES[dtype], copy=False)
    if dtype != "float32" and not np.isfinite(kept).all():
        row = int(np.flatnonzero(~np.isfinite(kept).all(axis=1))[0])
        raise NotFinite(
            f"{path}: vector {row} has a number beyond {np.finfo(DTYPES[dtype]).max}, the largest "
            f"of {dtype}; use --normalize, or --output-dtype float32"
        )
    atomic.write_whole(path, lambda file: np.save(file, kept))


def read_array(path: Any, shape: tuple[int, int], dtype: str = "float32") -> np.ndarray:
    """Read an array of a known shape and dtype.

    Raises: OSError where the file cannot be read; UserError where it holds anything else.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0}
            readers[(2, 0)] = np.lib.format.read_array_header_2_0
            found, is_fortran, held = readers[version](file)
        except (ValueError, LookupError, TypeError, SyntaxError, tokenize.TokenError) as error:
            raise UserError(f"{path} is no array of vectors: {error!s:.200}") from error
        kind = np.dtype(DTYPES[dtype])
        if found != shape or is_fortran or held != kind:
            raise UserError(
                f"{path} holds {held} {found!s:.80}, not the {dtype} {shape} of its manifest"
            )
        size = kind.itemsize * shape[0] * shape[1]
        content = file.read(size + 1)
    if len(content) != size:
        raise UserError(f"{path} has not as many bytes as its header says: it is damaged")
    return np.frombuffer(content, kind).reshape(shape)
