"""One step of SentEval's linear probes, several on the same batches, and their score.

The rules are torch's: Adam or RMSprop at its defaults, a weight decay added to the gradient, the
mean cross entropy of a batch. The bias is the weight of a feature that is always 1.

Axes that only the probes have: M rows, X fits, W weight decays, Y classes, Z features with the
bias, O outputs (weight decays times classes). B rows of a batch and D features are the project's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # steps, weights, two moments


@dataclass(frozen=True)
class Protocol:
    """How probes are trained and chosen; the defaults are SentEval's settings for results."""

    folds: int = 10
    optimizer: Literal["adam", "rmsprop"] = "adam"
    batch: int = 64
    tenacity: int = 5
    epoch_size: int = 4
    max_epoch: int = 200
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    held_out: float = 0.05

    @property
    def rounds(self) -> int:
        """Largest number of development scores of a fit."""
        return self.max_epoch // self.epoch_size + 1


class Fits(NamedTuple):
    """All fits, as arrays on the device; rows past those of a fit repeat row 0, uncounted."""

    train_XM: jax.Array
    trained_X: jax.Array
    development_XM: jax.Array
    developed_X: jax.Array
    decay_XW: jax.Array
    order_X: jax.Array
    orders: jax.Array


class FitBatch(NamedTuple):
    """Position of a batch: its fit, its epoch and its number in the epoch."""

    fit: jax.Array
    epoch: jax.Array
    number: jax.Array


def step(
    x_MZ: jax.Array, y_M: jax.Array, fits: Fits, batch: FitBatch, state: State, protocol: Protocol
) -> State:
    """Take one step of a slot's probes; a batch beyond the rows of the fit changes nothing."""
    steps, now_WYZ, *moments = state
    B = protocol.batch
    start = (fits.order_X[batch.fit], batch.epoch, batch.number * B)
    picked_B = jax.lax.dynamic_slice(fits.orders, start, (1, 1, B)).reshape(B)
    rows_B = fits.train_XM[batch.fit, picked_B]
    own = jnp.clip(fits.trained_X[batch.fit] - batch.number * B, 0, B)
    share_B = jnp.where(jnp.arange(B) < own, 1 / own, 0)
    slope_WYZ = _slope(x_MZ[rows_B], y_M[rows_B], share_B, now_WYZ)
    slope_WYZ += fits.decay_XW[batch.fit][:, None, None] * now_WYZ
    rule = _adam if protocol.optimizer == "adam" else _rmsprop
    new = (steps + 1, *rule(steps + 1, slope_WYZ, now_WYZ, *moments))
    return jax.tree.map(lambda new, old: jnp.where(own > 0, new, old), new, state)


def _slope(x_BZ: jax.Array, y_B: jax.Array, share_B: jax.Array, now_WYZ: jax.Array) -> jax.Array:
    """Compute the gradient of the cross entropy, each row weighted by its share."""
    logits_BWY = _logits(x_BZ, now_WYZ)
    wanted_BY = jax.nn.one_hot(y_B, logits_BWY.shape[-1])
    error_BWY = (jax.nn.softmax(logits_BWY) - wanted_BY[:, None]) * share_B[:, None, None]
    # The weight decays and classes as one axis: XLA would otherwise transpose all weights.
    error_BO = error_BWY.reshape(len(x_BZ), -1)
    slope_OZ = jnp.einsum("BO,BZ->OZ", error_BO, x_BZ, precision="highest")
    return slope_OZ.reshape(now_WYZ.shape)


def _logits(x_BZ: jax.Array, w_WYZ: jax.Array) -> jax.Array:
    W, Y, Z = w_WYZ.shape
    logits_BO = jnp.einsum("BZ,OZ->BO", x_BZ, w_WYZ.reshape(W * Y, Z), precision="highest")
    return logits_BO.reshape(-1, W, Y)


def _adam(
    steps: jax.Array, slope: jax.Array, w: jax.Array, mean: jax.Array, square: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Update as torch.optim.Adam does; optax rounds the first `1 - 0.999**steps` to four digits."""
    mean = mean + 0.1 * (slope - mean)
    square = 0.999 * square + 0.001 * slope * slope
    mean_grown = -jnp.expm1(steps * np.log(0.9))
    square_grown = -jnp.expm1(steps * np.log(0.999))
    rate = 0.001 / mean_grown
    return w - rate * mean / (jnp.sqrt(square) / jnp.sqrt(square_grown) + 1e-8), mean, square


def _rmsprop(
    steps: jax.Array, slope: jax.Array, w: jax.Array, mean: jax.Array, square: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Update as torch.optim.RMSprop does."""
    square = 0.99 * square + 0.01 * slope * slope
    return w - 0.01 * slope / (jnp.sqrt(square) + 1e-8), mean, square


def right(
    x_MZ: jax.Array, y_M: jax.Array, fits: Fits, fit: jax.Array, now_WYZ: jax.Array
) -> jax.Array:
    """Count the development rows that each probe of a slot gets right."""
    rows_M = fits.development_XM[fit]
    own_M = jnp.arange(len(rows_M)) < fits.developed_X[fit]
    found_MW = jnp.argmax(_logits(x_MZ[rows_M], now_WYZ), axis=-1)
    return ((found_MW == y_M[rows_M][:, None]) & own_M[:, None]).sum(axis=0, dtype=jnp.int32)
