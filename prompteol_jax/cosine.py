"""Cosines of vectors, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from prompteol_jax.errors import NotFinite, UserError, WrongType


def as_vectors(z: np.ndarray) -> Float[np.ndarray, "n D"]:
    """Return vectors [n, D] as float64; one vector [D] counts as a list of one.

    Raises: WrongType for another number of axes.
    """
    z_nD = np.atleast_2d(np.asarray(z, np.float64))
    if z_nD.ndim != 2:
        raise WrongType(f"vectors have the shape {z_nD.shape}; give [n, D]")
    return z_nD


def unit_rows(z_nD: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Scale vectors to length one, as float64.

    Raises: NotFinite for a vector that has no direction.
    """
    z_nD = np.asarray(z_nD, np.float64)
    length_n = np.linalg.norm(z_nD, axis=1, keepdims=True)
    if not (np.isfinite(length_n) & (length_n > 0)).all():
        raise NotFinite("a vector of zeros, or one that is not finite, has no cosine")
    return z_nD / length_n


def cosine_matrix(
    a_nD: Float[np.ndarray, "n D"], b_mD: Float[np.ndarray, "m _"]
) -> Float[np.ndarray, "n m"]:
    """Return the cosine of every vector in `a` with every one in `b`, float32.

    Raises: UserError for vectors of two widths; NotFinite for one that has no direction.
    """
    if a_nD.shape[1] != b_mD.shape[1]:
        widths = f"{a_nD.shape[1]} and {b_mD.shape[1]}"
        raise UserError(f"vectors of {widths} features have no cosine; give equal widths")
    return (unit_rows(a_nD) @ unit_rows(b_mD).T).astype(np.float32)


def vectors_of(side: Any, encode: Callable[[Any], np.ndarray]) -> Float[np.ndarray, "n D"]:
    """Return texts or vectors as float64 vectors.

    Args:
        encode: function that encodes texts.
    """
    if isinstance(side, (list, tuple)) and side and not isinstance(side[0], str):
        side = np.stack(side) if all(isinstance(z, np.ndarray) for z in side) else side
    if np.issubdtype(getattr(side, "dtype", np.object_), np.number):
        return as_vectors(np.asarray(side))
    return as_vectors(encode(side))
