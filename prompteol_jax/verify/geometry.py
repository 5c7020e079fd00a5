"""The geometry of vectors: are some the same, do all point one way, how many axes count."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from prompteol_jax.errors import UserError

SAME: Final = 1e-6  # vectors whose cosine is 1 up to this are one vector


class Spread(NamedTuple):
    """What `spread` finds.

    Attributes:
        cosines: of every two vectors.
        same: pairs of vectors that are one vector.
        dimensions: participation ratio of the covariance, (sum of variances)^2 over the sum of
            their squares: 1 where all vary along one line, D where they vary alike along all axes.
    """

    cosines: Float64[np.ndarray, " pairs"]
    same: int
    dimensions: float

    @property
    def mean_cosine(self) -> float:
        """Anisotropy: 0 for directions that are drawn evenly, 1 for one direction."""
        return float(self.cosines.mean())


def spread(z_BD: Float[np.ndarray, "B D"]) -> Spread:
    """Measure two or more vectors, in float64.

    Raises: UserError for a zero vector, which points nowhere.
    """
    z_BD = z_BD.astype(np.float64)
    norms = np.linalg.norm(z_BD, axis=1, keepdims=True)
    if not norms.all():
        raise UserError(f"{int((norms == 0).sum())} vectors are zero")
    unit = z_BD / norms
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    variances = np.linalg.svd(z_BD - z_BD.mean(axis=0), compute_uv=False) ** 2
    squares = max(float((variances**2).sum()), float(np.finfo(float).tiny))
    same = int((cosines > 1 - SAME).sum())
    return Spread(cosines, same, float(variances.sum() ** 2 / squares))
