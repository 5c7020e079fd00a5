"""Matryoshka: a loss over the first numbers of vectors too, so that these alone can be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from prompteol_jax.errors import UserError
from train.losses.loss import LossFunction, Metrics


def matryoshka(function: LossFunction, sizes: Sequence[int]) -> LossFunction:
    """Return the sum of a loss over the first `size` numbers of every vector, for each size.

    The metrics are the loss of each size, and those of the largest one.

    Source: Kusupati et al. 2022; weights of 1 as in sentence-transformers.
    """
    largest = max(sizes)

    def summed(*z_BD: Float[Array, "B D"], **needs: Any) -> tuple[Float[Array, ""], Metrics]:
        D = z_BD[0].shape[1]
        if largest > D:
            raise UserError(f"--matryoshka {largest}: the model's vectors have {D} numbers")
        total: jax.Array | float = 0.0
        metrics: Metrics = {}
        for size in sorted(sizes):
            teacher = {k: v[..., :size] for k, v in needs.items() if k == "teacher"}
            loss, others = function(*(z[:, :size] for z in z_BD), **{**needs, **teacher})
            total = total + loss
            metrics |= {**others, f"loss_{size}": loss}
        assert isinstance(total, jax.Array)  # there is a size
        return total, metrics

    return summed
