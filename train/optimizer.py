"""The optimizer of a run, its learning rate, and where its state is on a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from prompteol_jax.errors import listed, nearest

# A learning rate after the warm-up, of its peak and the number of steps that are left.
SCHEDULES: Final[Mapping[str, Callable[[float, int], optax.Schedule]]] = MappingProxyType(
    {
        "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
        "cosine": optax.cosine_decay_schedule,
        "constant": lambda peak, steps: optax.constant_schedule(peak),
    }
)
_ADAM: Final = dict(b1=0.9, b2=0.999, eps=1e-8)
# An optimizer of a learning rate; those of `DECAYING` take a decay of the weights too. The state of
# each is moments like the weights, and counters.
OPTIMIZERS: Final[Mapping[str, Callable[..., optax.GradientTransformation]]] = MappingProxyType(
    {
        "adamw": partial(optax.adamw, **_ADAM),
        "adam": partial(optax.adam, **_ADAM),
        "nadamw": partial(optax.nadamw, **_ADAM),
        "radam": partial(optax.radam, **_ADAM),
        "lion": optax.lion,
        "sgd": partial(optax.sgd, momentum=0.9),
    }
)
DECAYING: Final = ("adamw", "nadamw", "lion")


class Schedule(NamedTuple):
    """A learning rate that rises from 0 to its peak, then goes on as its kind says.

    Attributes:
        steps: number of steps of the run; warmup_steps: number of them before the peak.
        kind: name of one of `SCHEDULES`.
    """

    peak: float
    steps: int
    warmup_steps: int
    kind: str = "linear"

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step, counted from 0."""
        warmup = optax.linear_schedule(0.0, self.peak, self.warmup_steps)
        rest = SCHEDULES[self.kind](self.peak, max(1, self.steps - self.warmup_steps))
        return optax.join_schedules([warmup, rest], [self.warmup_steps])(step)


def make_optimizer(
    schedule: Schedule, name: str = "adamw", weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Return an optimizer, by default AdamW without weight decay, after a clip at norm 1.

    Source: the defaults of Hugging Face's Trainer, which the released code leaves unchanged.
    """
    decay = {"weight_decay": weight_decay} if name in DECAYING else {}
    return optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZERS[name](schedule, **decay))


def optimizer_problems(name: str, schedule: str, weight_decay: float) -> list[str]:
    """Return what is wrong with these flags."""
    wrong = [
        f"--{flag} {given} is unknown{nearest(given, known)}: choose one of {listed(known)}"
        for flag, given, known in (
            ("optimizer", name, OPTIMIZERS),
            ("schedule", schedule, SCHEDULES),
        )
        if given not in known
    ]
    if weight_decay and name in OPTIMIZERS and name not in DECAYING:
        wrong.append(f"--weight-decay has no effect with --optimizer {name}: leave it out")
    return wrong


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
