"""The optimizer of a run, its learning rate, and where its state is on a mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


class Schedule(NamedTuple):
    """A learning rate that rises from 0 to its peak, then falls to 0 at the last step.

    Attributes:
        steps: number of steps of the run; warmup_steps: number of them before the peak.
    """

    peak: float
    steps: int
    warmup_steps: int

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        warmup = optax.linear_schedule(0.0, self.peak, self.warmup_steps)
        decay = optax.linear_schedule(self.peak, 0.0, max(1, self.steps - self.warmup_steps))
        return optax.join_schedules([warmup, decay], [self.warmup_steps])(step)


def make_optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """Return AdamW without weight decay, after a clip of the gradient at norm 1.

    Source: the defaults of Hugging Face's Trainer, which the released code leaves unchanged.
    """
    adamw = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, trainable: PyTree, mesh: Mesh
) -> PyTree:
    """Return the shardings of the optimizer's state: a moment has that of its weight, the rest is
    replicated.
    """
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        jax.tree.map(lambda x: x.sharding, trainable),
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )
