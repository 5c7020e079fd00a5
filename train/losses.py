"""Losses over the vectors of a global batch, and the table that `--loss` chooses from.

A new loss is one function and one row of `LOSSES`: what is collated, logged and drawn follows from
the columns it needs and the metrics it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompteol_jax.errors import UserError, listed, nearest
from prompteol_jax.mesh import constrain
from prompteol_jax.ops.einsum import dot

TEMPERATURE: Final = 0.05
RESERVED: Final = frozenset(
    "step loss lr grad_norm step_s sentences_per_s padding finite_B".split()
)  # names of metrics that a run records itself
_BLOCK: Final = 2**24  # scores that a device holds at one time

Metrics = dict[str, jax.Array]
LossFunction = Callable[..., tuple[jax.Array, Metrics]]


def infonce(
    anchor_BD: Float[Array, "B D"],
    positive_BD: Float[Array, "B D"],
    negative_BD: Float[Array, "B D"] | None = None,
    *,
    temperature: float = TEMPERATURE,
) -> tuple[Float[Array, ""], Metrics]:
    """Return InfoNCE over in-batch positives and hard negatives, in float32.

    The matrix of scores is never whole on any device.

    Math: -log softmax_a(cos(anchor_b, alternative_a) / temperature)[a = b], mean over b; the
        alternatives are all positives of the global batch, then all hard negatives.
    Returns: the mean loss in nats, and `accuracy`, the share of anchors whose own positive has the
        highest score.
    Relations: without negatives, SimCSE's supervised loss on pairs. One direction only.
    Source: Jiang et al. 2024, section 3.3; temperature and direction as in the released code.
    """
    unit_BD = constrain(_unit(anchor_BD) / temperature, "BD")
    own_BD = _unit(positive_BD)
    unit_AD = own_BD
    if negative_BD is not None:
        unit_AD = jnp.concatenate([own_BD, _unit(negative_BD)])
    lse_B, best_B = _log_sum_exp(unit_BD, constrain(unit_AD, "BD"))
    loss_B = lse_B - (unit_BD * own_BD).sum(1)
    correct_B = best_B == jnp.arange(len(best_B))
    return loss_B.mean(), {"accuracy": correct_B.astype(jnp.float32).mean()}


class Loss(NamedTuple):
    """A loss by what it needs.

    Attributes:
        columns: texts that every row must hold.
        optional: texts that are used where the rows hold them.
        function: `(vectors of the columns, in this order) -> (loss, other metrics by name)`.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    function: LossFunction


LOSSES: Final = {"infonce": Loss(("sent0", "sent1"), ("hard_neg",), infonce)}


def find_loss(name: str) -> Loss:
    """Return a loss by name.

    Raises: UserError with the names there are, and the nearest one.
    """
    if name not in LOSSES:
        raise UserError(
            f"--loss {name} is unknown{nearest(name, LOSSES)}: choose one of {listed(LOSSES)}"
        )
    return LOSSES[name]


def check_metrics(metrics: Metrics) -> None:
    """Refuse metrics that a run would overwrite or drop: reserved names, and what is no scalar.

    Raises: ValueError that names all of them.
    """
    taken = sorted(RESERVED & metrics.keys())
    shaped = sorted(name for name, value in metrics.items() if jnp.ndim(value))
    problems = [f"metrics {', '.join(taken)} are the run's own: take other names"] * bool(taken)
    problems += [f"metrics {', '.join(shaped)} are no scalars: reduce them"] * bool(shaped)
    if problems:
        raise ValueError(f"loss function: {'; '.join(problems)}")


@jax.custom_vjp
def _log_sum_exp(
    x_BD: Float[Array, "B D"], y_AD: Float[Array, "A D"]
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    """Return log-sum-exp of `x_b · y_a` over a, and the a of the highest score (the first of ties).

    Anchors stay on their devices. Alternatives come in strided blocks; each block is gathered over
    data when it is needed and sharded over model. The sum is kept relative to a running maximum.
    """
    (lse_B, best_B), _ = _forward(x_BD, y_AD)
    return lse_B, best_B


def _forward(x_BD: jax.Array, y_AD: jax.Array) -> tuple[tuple, tuple]:
    B, A = len(x_BD), len(y_AD)
    blocks = _blocks(B, A)

    def add(running: tuple, block: tuple) -> tuple[tuple, None]:
        max_B, sum_B, best_B = running
        y_aD, index = block
        score_Ba = _scores(x_BD, y_aD)
        top_B = score_Ba.max(1)
        # Element n of block i is alternative n * blocks + i; of equal ones the first counts.
        first_B = score_Ba.argmax(1) * blocks + index
        ahead_B = (top_B > max_B) | ((top_B == max_B) & (first_B < best_B))
        higher_B = jnp.maximum(max_B, top_B)
        sum_B = sum_B * jnp.exp(max_B - higher_B) + jnp.exp(score_Ba - higher_B[:, None]).sum(1)
        return (higher_B, sum_B, jnp.where(ahead_B, first_B, best_B)), None

    start = (jnp.full(B, -jnp.inf), jnp.zeros(B), jnp.full(B, A, jnp.int32))
    start = tuple(constrain(a_B, "B") for a_B in start)
    (max_B, sum_B, best_B), _ = jax.lax.scan(add, start, (_cut(y_AD, blocks), jnp.arange(blocks)))
    lse_B = max_B + jnp.log(sum_B)
    return (lse_B, best_B), (x_BD, y_AD, lse_B)


def _backward(saved: tuple, cotangents: tuple) -> tuple[jax.Array, jax.Array]:
    x_BD, y_AD, lse_B = saved
    weight_B, _ = cotangents

    def add(dx_BD: jax.Array, y_aD: jax.Array) -> tuple[jax.Array, jax.Array]:
        p_Ba = jnp.exp(_scores(x_BD, y_aD) - lse_B[:, None]) * weight_B[:, None]
        dx_BD = dx_BD + dot("BA,AD->BD", p_Ba, y_aD)
        # Sum over the anchors of all devices, back on the devices that hold the alternatives.
        return constrain(dx_BD, "BD"), constrain(dot("BA,BD->AD", p_Ba, x_BD), "BD")

    blocks = _blocks(len(x_BD), len(y_AD))
    dx_BD, dy_MaD = jax.lax.scan(add, jnp.zeros_like(x_BD), _cut(y_AD, blocks))
    return dx_BD, jnp.swapaxes(dy_MaD, 0, 1).reshape(y_AD.shape)


_log_sum_exp.defvjp(_forward, _backward)


def _scores(x_BD: jax.Array, y_aD: jax.Array) -> jax.Array:
    y_aD = constrain(y_aD, "AD")  # the one gather of the program
    return constrain(dot("BD,AD->BA", x_BD, y_aD), "BA")


def _blocks(B: int, A: int) -> int:
    """Return the number of blocks of alternatives: as few as bound the scores on a device."""
    mesh = jax.sharding.get_abstract_mesh()
    data, devices = (1, 1) if mesh.empty else (mesh.shape["data"], mesh.size)
    fewest = -(-B * A // (_BLOCK * devices))
    share = A // data if A % data == 0 else A
    return next(n for n in range(min(fewest, share), share + 1) if share % n == 0)


def _cut(y_AD: jax.Array, blocks: int) -> jax.Array:
    """Split into strided blocks, so that every alternative stays on its device until it is used."""
    A, D = y_AD.shape
    return jnp.swapaxes(y_AD.reshape(A // blocks, blocks, D), 0, 1)


def _unit(z_BD: jax.Array) -> jax.Array:
    """Scale rows to length one, with a finite gradient at zero."""
    square_B = jnp.square(z_BD).sum(-1, keepdims=True)
    return z_BD * jax.lax.rsqrt(jnp.maximum(square_B, 1e-16))
