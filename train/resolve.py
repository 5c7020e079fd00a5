"""From flags to settings: every choice that a flag leaves open is made here, one time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from prompteol_jax import runtime
from prompteol_jax.distributed import Share
from prompteol_jax.lora.lora import LoraConfig
from prompteol_jax.ops.scan import Remat
from prompteol_jax.text.template import Template, read_template
from train.config import TrainConfig
from train.data.batches import Batches
from train.data.triplets import Triplet
from train.losses import LossFunction, find_loss
from train.optimizer import Schedule
from train.save_policy import SavePolicy
from train.trainable import ModelSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """What a run does, in the parts that its modules take.

    Attributes:
        flags: the flags with the dtype filled in, which the run's folder records.
        columns: texts of a row that the loss compares.
        batches: the rows of every step that this process reads.
        remat: what the backward pass recomputes; None to take the first that fits the device.
    """

    flags: TrainConfig
    mesh: Mesh
    model: ModelSettings
    template: Template
    loss_function: LossFunction
    columns: tuple[str, ...]
    batches: Batches
    schedule: Schedule
    policy: SavePolicy
    remat: Remat | None


def resolve(config: TrainConfig, mesh: Mesh, rows: Sequence[Triplet]) -> ResolvedConfig:
    """Settle what the flags mean for these rows on this mesh.

    Raises: UserError where the rows cannot fill a batch, or lack a column of the loss.
    """
    dtype = config.dtype or runtime.default_dtype()
    config = dataclasses.replace(config, dtype=dtype)
    share, loss = Share.of(mesh), find_loss(config.loss)
    batches = Batches(
        rows,
        batch=config.batch,
        epochs=_epochs(config, len(rows)),
        seed=config.seed,
        process_index=share.index,
        process_count=share.count,
    )
    steps = len(batches)
    warmup = min(100, steps // 10) if config.warmup_steps is None else config.warmup_steps
    used = [c for c in loss.optional if getattr(rows[0], c) is not None]
    return ResolvedConfig(
        flags=config,
        mesh=mesh,
        model=ModelSettings(
            model=config.model,
            adapter=config.adapter,
            full=config.full,
            lora=LoraConfig(rank=config.rank, alpha=config.alpha, dropout=config.dropout),
            dtype=dtype,
            quantize=config.quantize,
            base_dropout=config.base_dropout,
            seed=config.seed,
        ),
        template=read_template(config.template),
        loss_function=loss.function,
        columns=(*loss.columns, *used),
        batches=batches,
        schedule=Schedule(config.lr, steps, warmup),
        policy=SavePolicy(steps, config.eval_every, config.save_every, config.patience),
        remat=None if config.remat == "auto" else config.remat,
    )


def _epochs(config: TrainConfig, rows: int) -> float:
    if config.steps is None:
        return config.epochs
    return config.steps / max(1, rows // config.batch)
