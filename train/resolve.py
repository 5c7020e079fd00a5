"""From flags to settings: every choice that a flag leaves open is made here, one time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from prompteol_jax import runtime
from prompteol_jax.distributed import Share
from prompteol_jax.errors import UserError
from prompteol_jax.lora.lora import LoraConfig
from prompteol_jax.ops.scan import Remat
from prompteol_jax.text.template import Template, read_template
from train.config import TrainConfig
from train.data.batches import Batches
from train.data.mixture import MixedBatches, Mixture
from train.data.triplets import columns_of
from train.flags import RunConfig
from train.losses.choose import choose_loss
from train.losses.loss import Loss
from train.optimizer import Schedule
from train.save_policy import SavePolicy
from train.trainable import ModelSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """What a run does, in the parts that its modules take.

    Attributes:
        flags: the flags with the dtype filled in, which the run's folder records.
        columns: texts of a row that the loss compares; loss: the loss, its options set.
        batches: the rows of every step that this process reads.
        remat: what the backward pass recomputes; None to take the first that fits the device.
    """

    flags: RunConfig
    mesh: Mesh
    model: ModelSettings
    template: Template
    loss: Loss
    columns: tuple[str, ...]
    batches: Batches | MixedBatches
    schedule: Schedule
    policy: SavePolicy
    remat: Remat | None


def resolve(config: TrainConfig, mesh: Mesh, rows: Sequence[Any]) -> ResolvedConfig:
    """Settle what the flags mean for these rows on this mesh.

    Raises: UserError where the rows cannot fill a batch, or lack a column of the loss.
    """
    loss = choose_loss(config.loss, config.loss_options, config.matryoshka)
    return settings_of(config, mesh, rows, loss)


def settings_of(
    config: RunConfig, mesh: Mesh, rows: Sequence[Any], loss: Loss, warmup: float | None = None
) -> ResolvedConfig:
    """Settle the flags of any kind of run, given its loss.

    Args:
        warmup: share of the steps before the peak of the learning rate where no flag says it; None
            for a tenth, and 100 steps at most.
    Raises: UserError as `resolve`.
    """
    dtype = config.dtype or runtime.default_dtype()
    config = dataclasses.replace(config, dtype=dtype)
    columns = _columns(loss, columns_of(rows[0]))
    batches = make_batches(config, rows, Share.of(mesh))
    steps = len(batches)
    rise = min(100, steps // 10) if warmup is None else int(warmup * steps)
    rise = rise if config.warmup_steps is None else config.warmup_steps
    return ResolvedConfig(
        flags=config,
        mesh=mesh,
        model=_model(config, dtype),
        template=read_template(config.template),
        loss=loss,
        columns=columns,
        batches=batches,
        schedule=Schedule(config.lr, steps, rise, config.schedule),
        policy=SavePolicy(steps, config.eval_every, config.save_every, config.patience),
        remat=None if config.remat == "auto" else config.remat,
    )


def _model(config: RunConfig, dtype: str) -> ModelSettings:
    return ModelSettings(
        model=config.model,
        adapter=config.adapter,
        full=config.full,
        lora=LoraConfig(
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            targets=config.lora_targets or None,
            rslora=config.rslora,
        ),
        dtype=dtype,
        quantize=config.quantize,
        base_dropout=config.base_dropout,
        seed=config.seed,
        fsdp=config.fsdp,
    )


def make_batches(config: RunConfig, rows: Sequence[Any], share: Share) -> Batches | MixedBatches:
    """Return the rows of every step that this process reads.

    Raises: UserError where the rows, or those of a source, cannot fill a batch.
    """
    order: dict[str, Any] = dict(
        batch=config.batch,
        seed=config.seed,
        process_index=share.index,
        process_count=share.count,
    )
    if isinstance(rows, Mixture):
        return MixedBatches(rows, epochs=config.epochs, steps=config.steps, **order)
    return Batches(rows, epochs=_epochs(config, len(rows)), **order)


def _columns(loss: Loss, present: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that the loss compares.

    Raises: UserError where the rows lack what it needs.
    """
    needed = [*loss.columns, *(name for name in loss.needs if name != "text")]
    lacking = [name for name in needed if name not in present]
    if lacking:
        advice = "give --teacher" if lacking == ["teacher"] else "choose another loss or other data"
        raise UserError(
            f"the loss needs {', '.join(lacking)} of every row, and --data has "
            f"{', '.join(present)}: {advice}"
        )
    return loss.texts_of(present)


def _epochs(config: RunConfig, rows: int) -> float:
    if config.steps is None:
        return config.epochs
    return config.steps / max(1, rows // config.batch)
