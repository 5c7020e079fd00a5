"""The contrastive loss over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompteol_jax import axes

TEMPERATURE = 0.05
_WHOLE = 2**24  # scores; a larger matrix is never formed at once


@jax.named_scope("loss")
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
    alternatives = [positive_BD] if negative_BD is None else [positive_BD, negative_BD]
    # The one gather of the program: every device scores its anchors against all alternatives.
    unit_AD = axes.constrain(jnp.concatenate([_unit(z) for z in alternatives]), "AD")
    unit_BD = axes.constrain(_unit(anchor_BD) / temperature, "BD")
    B, A = len(unit_BD), len(unit_AD)
    chunks = min(B, -(-B * A // _WHOLE))
    while B % chunks:
        chunks += 1
    # Strided chunks leave every row on its device.
    chunk_MbD = jnp.swapaxes(unit_BD.reshape(B // chunks, chunks, -1), 0, 1)
    own_Mb = jnp.swapaxes(jnp.arange(B).reshape(B // chunks, chunks), 0, 1)

    @jax.checkpoint
    def score(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        unit_bD, own_b = chunk
        scores_bA = jnp.matmul(unit_bD, unit_AD.T, precision=jax.lax.Precision.HIGHEST)
        own = jnp.take_along_axis(scores_bA, own_b[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores_bA, axis=1) - own, scores_bA.argmax(1) == own_b

    loss_Mb, correct_Mb = jax.lax.map(score, (chunk_MbD, own_Mb))
    return loss_Mb.mean(), correct_Mb.astype(jnp.float32).mean()


def _unit(z_BD: jax.Array) -> jax.Array:
    """Scale rows to length one, with a finite gradient at zero."""
    square_B = jnp.square(z_BD).sum(-1, keepdims=True)
    return z_BD * jax.lax.rsqrt(jnp.maximum(square_B, 1e-16))
