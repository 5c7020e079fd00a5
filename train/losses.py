"""The contrastive loss over the global batch, whose matrix of scores is never whole anywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompteol_jax.mesh import constrain
from prompteol_jax.ops.einsum import dot

TEMPERATURE = 0.05
_BLOCK = 2**24  # scores that a device holds at once


def contrastive_loss(
    anchor_BD: Float[Array, "B D"],
    positive_BD: Float[Array, "B D"],
    negative_BD: Float[Array, "B D"] | None = None,
    *,
    temperature: float = TEMPERATURE,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """InfoNCE over in-batch positives and hard negatives, in float32.

    Math: -log softmax_a(cos(anchor_b, alternative_a) / temperature)[a = b], mean over b; the
        alternatives are all positives of the global batch, then all hard negatives.
    Returns: the mean loss in nats, and the share of anchors whose own positive scores highest.
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
    return loss_B.mean(), correct_B.astype(jnp.float32).mean()


@jax.custom_vjp
def _log_sum_exp(
    x_BD: Float[Array, "B D"], y_AD: Float[Array, "A D"]
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    """Log-sum-exp of `x_b · y_a` over a, and the a that scores highest (the first of equal ones).

    Anchors stay on their devices. Alternatives come in strided blocks, each gathered from the
    devices along data when its turn comes and cut over model; the sum runs along with its maximum.
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


def _backward(kept: tuple, cotangents: tuple) -> tuple[jax.Array, jax.Array]:
    x_BD, y_AD, lse_B = kept
    weight_B, _ = cotangents

    def add(dx_BD: jax.Array, y_aD: jax.Array) -> tuple[jax.Array, jax.Array]:
        p_Ba = jnp.exp(_scores(x_BD, y_aD) - lse_B[:, None]) * weight_B[:, None]
        dx_BD = dx_BD + dot("BA,AD->BD", p_Ba, y_aD)
        # Summed over the anchors of all devices and given back to those the alternatives came from.
        return constrain(dx_BD, "BD"), constrain(dot("BA,BD->AD", p_Ba, x_BD), "BD")

    blocks = _blocks(len(x_BD), len(y_AD))
    dx_BD, dy_MaD = jax.lax.scan(add, jnp.zeros_like(x_BD), _cut(y_AD, blocks))
    return dx_BD, jnp.swapaxes(dy_MaD, 0, 1).reshape(y_AD.shape)


_log_sum_exp.defvjp(_forward, _backward)


def _scores(x_BD: jax.Array, y_aD: jax.Array) -> jax.Array:
    y_aD = constrain(y_aD, "AD")  # the one gather of the program
    return constrain(dot("BD,AD->BA", x_BD, y_aD), "BA")


def _blocks(B: int, A: int) -> int:
    """Into how many blocks alternatives are cut: as few as keep a device's scores in bounds."""
    mesh = jax.sharding.get_abstract_mesh()
    data, devices = (1, 1) if mesh.empty else (mesh.shape["data"], mesh.size)
    fewest = -(-B * A // (_BLOCK * devices))
    share = A // data if A % data == 0 else A
    return next(n for n in range(min(fewest, share), share + 1) if share % n == 0)


def _cut(y_AD: jax.Array, blocks: int) -> jax.Array:
    """Strided blocks, which leave every alternative on its device until it is wanted."""
    A, D = y_AD.shape
    return jnp.swapaxes(y_AD.reshape(A // blocks, blocks, D), 0, 1)


def _unit(z_BD: jax.Array) -> jax.Array:
    """Scale rows to length one, with a finite gradient at zero."""
    square_B = jnp.square(z_BD).sum(-1, keepdims=True)
    return z_BD * jax.lax.rsqrt(jnp.maximum(square_B, 1e-16))
