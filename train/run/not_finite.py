"""The error of a run whose loss or gradient is not finite: the step, and the rows that it saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from prompteol_jax import distributed
from prompteol_jax.errors import NotFinite, listed
from train.data.batches import Batches
from train.data.mixture import MixedBatches
from train.run.folder import NOT_FINITE, RunFolder


def not_finite(
    folder: RunFolder,
    batches: Batches | MixedBatches,
    data: str,
    step: int,
    metrics: dict[str, Any],
) -> NotFinite:
    """Return the error that ends a run; the texts of the step's rows go into RUN/not_finite.jsonl.

    Args:
        data: name of the source of the rows.
        step: number of the step, from 1; metrics: metrics of that step.
    """
    finite_B = distributed.to_host(metrics["finite_B"])
    unit, numbers = batches.origin(step - 1)
    if distributed.is_primary():
        for number, triplet, finite in zip(numbers, batches.whole(step - 1), finite_B, strict=True):
            row = {"step": step, unit: number, "finite": bool(finite)}
            texts = {k: v for k, v in triplet._asdict().items() if k != "teacher"}
            folder.append(NOT_FINITE, {**row, **texts})
    folder.publish()
    bad = [number for number, finite in zip(numbers, finite_B, strict=True) if not finite]
    if bad:
        what = f"The vectors of {len(bad)} of its {len(numbers)} rows are not finite"
    else:
        bad, what = numbers, f"The vectors of all its {len(numbers)} rows are finite"
    loss, grad_norm = (float(np.asarray(metrics[name])) for name in ("loss", "grad_norm"))
    return NotFinite(
        f"step {step}: loss {loss}, gradient norm {grad_norm}. {what}: {unit} {listed(bad)} of "
        f"{batches.source(step - 1) or data}. All its rows and their texts are in "
        f"{folder.home / NOT_FINITE}. A lower --lr or --dtype float32 may help."
    )
