"""What a loss takes of rows with the vectors of their texts, as arrays of one row each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import Float32, Int32

Reader = Callable[[Sequence[Any], Sequence[str]], np.ndarray]


def scores(rows: Sequence[Any], columns: Sequence[str]) -> Float32[np.ndarray, "B ..."]:
    """Return the score of each row, or its list of scores."""
    return np.array([row.score for row in rows], np.float32)


def teachers(rows: Sequence[Any], columns: Sequence[str]) -> Float32[np.ndarray, "B ..."]:
    """Return the teacher's vector of each row, or its vectors."""
    return np.stack([row.teacher for row in rows]).astype(np.float32)


def texts(rows: Sequence[Any], columns: Sequence[str]) -> Int32[np.ndarray, "B columns 2"]:
    """Return a hash of every text, 64 bits as two words; equal texts have equal ones."""
    raw = b"".join(
        hashlib.blake2b(getattr(row, name).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for row in rows
        for name in columns
    )
    return np.frombuffer(raw, np.int32).reshape(len(rows), len(columns), 2)


NEEDS: Final[Mapping[str, Reader]] = {"score": scores, "teacher": teachers, "text": texts}


def needs_of(
    names: Sequence[str], rows: Sequence[Any], columns: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what is needed of these rows, by name."""
    return {name: NEEDS[name](rows, columns) for name in names}


def placeholders(
    names: Sequence[str], row: Any, columns: Sequence[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what is needed of one row, by name."""
    one = needs_of(names, [row], columns)
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in one.items()}
