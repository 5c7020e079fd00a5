"""From the flags of an alignment run to its settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from jax.sharding import Mesh

from train.align.config import AlignConfig
from train.align.dpo import dpo
from train.losses.loss import Loss
from train.resolve import ResolvedConfig, settings_of

WARMUP: Final = 0.05  # share of the steps, as in SemPA


def resolve(config: AlignConfig, mesh: Mesh, rows: Sequence[Any]) -> ResolvedConfig:
    """Settle what the flags mean for these rows on this mesh.

    Raises: UserError where the rows cannot fill a batch, or have no hard negatives.
    """
    loss = Loss(("sent0", "sent1", "hard_neg"), (), partial(dpo, beta=config.beta))
    return settings_of(config, mesh, rows, loss, warmup=WARMUP)
