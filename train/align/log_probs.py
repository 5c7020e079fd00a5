"""Log-probabilities of answers, from the LM head over the answers' positions alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from prompteol_jax.mesh import constrain
from prompteol_jax.ops.context import soft_cap
from prompteol_jax.ops.einsum import dot
from train.align.collate import IGNORED

BLOCK: Final = 2**24  # logits that a device holds at one time


def answer_log_probs(
    z_BSD: Float[Array, "B S D"],
    head_VD: Float[Array, "V D"],
    target_BS: Int[Array, "B S"],
    softcap: float | None = None,
) -> Float[Array, "B"]:
    """Return the sum of the log-probabilities of each row's targets, in float32.

    Logits are made for some positions at a time, and again in the backward pass: `[B, S, V]` is
    never there, nor is `[B, T, V]`.

    Args:
        softcap: bound of the logits, as in Gemma 2; None for none.
    """
    B, S, _ = z_BSD.shape
    size = _positions(B, S, len(head_VD))
    pad = ((0, 0), (0, -S % size))
    z_BSD = jnp.pad(z_BSD, (*pad, (0, 0)))
    target_BS = jnp.pad(target_BS, pad, constant_values=IGNORED)

    @jax.checkpoint
    def some(block: tuple[jax.Array, jax.Array]) -> Float[Array, "B"]:
        z_BSD, target_BS = block
        logits_BSV = constrain(dot("BSD,VD->BSV", z_BSD.astype(head_VD.dtype), head_VD), "BSV")
        bounded_BSV = soft_cap(logits_BSV, softcap)
        own_BS = jnp.take_along_axis(bounded_BSV, jnp.maximum(target_BS, 0)[..., None], axis=2)
        log_p_BS = own_BS[..., 0] - jax.nn.logsumexp(bounded_BSV, axis=2)
        return jnp.where(target_BS == IGNORED, 0, log_p_BS).sum(1)

    def cut(x_BS: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_BS.reshape(B, -1, size, *x_BS.shape[2:]), 0, 1)

    return jax.lax.map(some, (cut(z_BSD), cut(target_BS))).sum(0)


def _positions(B: int, S: int, V: int) -> int:
    """Return the positions of every row whose logits fit together."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    return max(1, min(S, BLOCK * devices // (B * V)))


LogProbs = Callable[..., jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_reference(
    log_probs: LogProbs, trainable: PyTree, others: Any
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Return what a function of an adapter gives, and what it gives with the adapter off.

    Both are computed by the two iterations of one loop, an adapter whose factors are all zero in
    the second: where the adapter changes nothing, the two are the same bits. The gradient is that
    of the first, which is computed again for it.

    Args:
        log_probs: `(trainable, *others) -> [B]`.
    """
    both = jax.tree.map(lambda x: jnp.stack([x, jnp.zeros_like(x)]), trainable)
    policy_B, reference_B = jax.lax.map(lambda one: log_probs(one, *others), both)
    return policy_B, reference_B


def _forward(log_probs: LogProbs, trainable: PyTree, others: Any) -> tuple[tuple, tuple]:
    return with_reference(log_probs, trainable, others), (trainable, others)


def _backward(log_probs: LogProbs, saved: tuple, cotangents: tuple) -> tuple[PyTree, None]:
    trainable, others = saved
    _, pull = jax.vjp(lambda one: log_probs(one, *others), trainable)
    (gradient,) = pull(cotangents[0])
    return gradient, None


with_reference.defvjp(_forward, _backward)
