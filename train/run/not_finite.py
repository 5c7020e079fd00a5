"""What is left of a run whose loss or gradient is not finite: the step and the rows that it saw."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from prompteol_jax import distributed
from prompteol_jax.errors import NotFinite
from train.data.triplets import Batches
from train.run.folder import NOT_FINITE, RunFolder

_LISTED: Final = 20


def not_finite(
    folder: RunFolder, batches: Batches, data: str, step: int, metrics: dict[str, Any]
) -> FloatingPointError:
    """The error that ends a run after a step; the texts of its rows go into RUN/not_finite.jsonl.

    Args:
        data: where the rows come from. step: counts from 0; metrics: what it gave.
    """
    finite_B = distributed.to_host(metrics["finite_B"])
    unit, numbers = batches.places(step)
    if distributed.is_primary():
        for number, triplet, finite in zip(numbers, batches.whole(step), finite_B, strict=True):
            row = {"step": step + 1, unit: number, "finite": bool(finite)}
            folder.append(NOT_FINITE, {**row, **triplet._asdict()})
    folder.publish()
    bad = [number for number, finite in zip(numbers, finite_B, strict=True) if not finite]
    if bad:
        what = f"The vectors of {len(bad)} of its {len(numbers)} rows are not finite"
    else:
        bad, what = numbers, f"The vectors of all its {len(numbers)} rows are finite"
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    loss, grad_norm = (float(np.asarray(metrics[name])) for name in ("loss", "grad_norm"))
    listed = ", ".join(map(str, bad[:_LISTED])) + more
    return NotFinite(
        f"step {step + 1}: loss {loss}, gradient norm {grad_norm}. {what}: {unit} {listed} of "
        f"{data}. All its rows and their texts are in {folder.home / NOT_FINITE}. "
        "A lower --lr or --dtype float32 may help."
    )
