"""SentEval's linear probe, many of them trained together in one jitted program.

A fit is one split of the rows into training and development rows, with one probe for each weight
decay; its probes see the same batches and share their gather and their products. Fits wait in a
queue for a fixed number of slots, which train side by side; a slot whose probes have all stopped
takes the next fit, so that nothing waits for the slowest. Between the steps nothing leaves the
device; the host looks in now and then to move the progress bar.

The rules are SentEval's: a score on the development rows every `epoch_size` epochs; the weights of
the best score are kept, of equals the first; training ends with the score that is no better and has
`tenacity` such before it, counted over the whole run, or once `max_epoch` epochs are exceeded.

Axes: those of `probe_step`, and U slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int64

from eval.transfer import draws, probe_step
from eval.transfer.probe_step import Fits, Protocol
from prompteol_jax import runtime

LOOK_IN: Final = 8  # rounds between two looks of the host
CPU_SLOTS: Final = 32  # the fastest of 4 to 32, two cores, 768 features
VECTOR: Final = 8  # features are padded to a multiple of it


class Split(NamedTuple):
    """Rows to train on and rows to stop early by; `drawn_rows` as in `draws.shuffles`."""

    train: Int64[np.ndarray, " _"]
    development: Int64[np.ndarray, " _"]
    drawn_rows: int = 0


class Probes(NamedTuple):
    """Trained weights, and how many development rows each gets right."""

    w_XWYD: Float32[np.ndarray, "X W Y D"]
    b_XWY: Float32[np.ndarray, "X W Y"]
    right_XW: Int64[np.ndarray, "X W"]


class Slots(NamedTuple):
    """State of each slot: its fit (past the last: none), its probes and their best weights."""

    fit: jax.Array
    round: jax.Array
    steps: jax.Array
    now_WYZ: jax.Array
    moments: tuple[jax.Array, jax.Array]
    best_WYZ: jax.Array
    right_W: jax.Array
    worse_W: jax.Array
    stopped_W: jax.Array


class ProbeState(NamedTuple):
    """The slots, the next fit in the queue, and weights and scores of the finished fits."""

    slots: Slots
    queued: jax.Array
    found_XWYZ: jax.Array
    right_XW: jax.Array


def fit(
    features_MD: Float32[np.ndarray, "M D"],
    labels_M: Int64[np.ndarray, " M"],
    splits: Sequence[Split],
    decay_XW: np.ndarray,
    *,
    classes: int,
    protocol: Protocol,
    seed: int,
    slots: int | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> Probes:
    """Train the probes of all splits, each from the first weights and shuffles of the seed.

    Args:
        slots: Number of fits trained side by side; by default 32 on a CPU, elsewhere all of them.
        advance: Function called with the number of fits that ended since the last call.
    """
    if slots is None:
        slots = runtime.side_by_side(len(splits), cpu_limit=CPU_SLOTS)
    slots = min(slots, len(splits))
    fits = _lay_out(splits, decay_XW, protocol, seed)
    x_MZ, first_WYZ = _with_bias(features_MD, classes, decay_XW.shape[1], seed)
    y_M = jnp.asarray(labels_M, jnp.int32)
    state = _start(fits, first_WYZ, slots)
    ended = 0
    while ended < len(splits):
        state, left = _proceed(x_MZ, y_M, fits, first_WYZ, state, protocol)
        advance(len(splits) - int(left) - ended)
        ended = len(splits) - int(left)
    found_XWYZ, D = np.asarray(state.found_XWYZ), features_MD.shape[1]
    return Probes(found_XWYZ[..., :D], found_XWYZ[..., D], np.asarray(state.right_XW, np.int64))


def predict(
    features_MD: Float32[np.ndarray, "M D"],
    w_YD: Float32[np.ndarray, "Y D"],
    b_Y: Float32[np.ndarray, " Y"],
) -> Int64[np.ndarray, " M"]:
    """Return the class of each row; of equal ones the first."""
    return np.argmax(features_MD @ w_YD.T + b_Y, axis=1)


def _lay_out(splits: Sequence[Split], decay_XW: np.ndarray, protocol: Protocol, seed: int) -> Fits:
    """Pad the splits to one shape and draw each distinct order of training rows once."""
    sizes = [(len(split.train), split.drawn_rows) for split in splits]
    distinct = list(dict.fromkeys(sizes))
    epochs = protocol.rounds * protocol.epoch_size
    # Whole batches, so that the slice of the last one does not slide back over rows already seen.
    longest = -(-max(trained for trained, _ in sizes) // protocol.batch) * protocol.batch
    orders = np.zeros((len(distinct), epochs, longest), np.int32)
    for index, (trained, drawn) in enumerate(distinct):
        orders[index, :, :trained] = draws.shuffles(trained, epochs, seed, drawn)
    return Fits(
        _padded([split.train for split in splits]),
        jnp.array([trained for trained, _ in sizes]),
        _padded([split.development for split in splits]),
        jnp.array([len(split.development) for split in splits]),
        jnp.asarray(decay_XW, jnp.float32),
        jnp.array([distinct.index(size) for size in sizes]),
        jnp.asarray(orders),
    )


def _padded(rows: Sequence[np.ndarray]) -> jax.Array:
    table = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for line, own in zip(table, rows, strict=True):
        line[: len(own)] = own
    return jnp.asarray(table)


def _with_bias(
    features_MD: np.ndarray, classes: int, decays: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    """Return features with a 1 for the bias, zeros up to whole vectors, and the first weights."""
    M, D = features_MD.shape
    w_YD, b_Y = draws.linear_weights(D, classes, seed)
    blank = ((0, 0), (0, -(D + 1) % VECTOR))
    x_MZ = np.pad(np.column_stack([features_MD, np.ones(M, np.float32)]), blank)
    w_YZ = np.pad(np.column_stack([w_YD, b_Y]), blank)
    return jnp.asarray(x_MZ), jnp.asarray(np.tile(w_YZ, (decays, 1, 1)))


def _start(fits: Fits, first_WYZ: jax.Array, slots: int) -> ProbeState:
    X, W = fits.decay_XW.shape
    fresh = jax.vmap(lambda number: _fresh_slot(number, first_WYZ))(jnp.arange(slots))
    found_XWYZ = jnp.zeros((X, *first_WYZ.shape), first_WYZ.dtype)
    return ProbeState(fresh, jnp.int32(slots), found_XWYZ, jnp.zeros((X, W), jnp.int32))


def _fresh_slot(number: jax.Array, first_WYZ: jax.Array) -> Slots:
    W = len(first_WYZ)
    return Slots(
        fit=number.astype(jnp.int32),
        round=jnp.int32(0),
        steps=jnp.int32(0),
        now_WYZ=first_WYZ,
        moments=(jnp.zeros_like(first_WYZ), jnp.zeros_like(first_WYZ)),
        best_WYZ=first_WYZ,
        right_W=jnp.full(W, -1),
        worse_W=jnp.zeros(W, jnp.int32),
        stopped_W=jnp.zeros(W, bool),
    )


@partial(jax.jit, static_argnames="protocol", donate_argnames="state")
def _proceed(
    x_MZ: jax.Array,
    y_M: jax.Array,
    fits: Fits,
    first_WYZ: jax.Array,
    state: ProbeState,
    protocol: Protocol,
) -> tuple[ProbeState, jax.Array]:
    """Train for some rounds, or until no fit is left; return the state and the fits left."""
    X = len(fits.trained_X)
    train = jax.vmap(lambda slot: _round(x_MZ, y_M, fits, slot, protocol))

    def proceed(carry: tuple[jax.Array, ProbeState]) -> tuple[jax.Array, ProbeState]:
        rounds, state = carry
        trained = state._replace(slots=train(state.slots))
        return rounds + 1, _refill(trained, first_WYZ, protocol)

    def unfinished(carry: tuple[jax.Array, ProbeState]) -> jax.Array:
        rounds, state = carry
        return (rounds < LOOK_IN) & (state.slots.fit < X).any()

    _, state = jax.lax.while_loop(unfinished, proceed, (jnp.int32(0), state))
    return state, X - state.queued + (state.slots.fit < X).sum()


def _refill(state: ProbeState, first_WYZ: jax.Array, protocol: Protocol) -> ProbeState:
    """Store the probes of slots that have ended and give these slots the next fits."""
    slots, X = state.slots, len(state.right_XW)
    ended_U = slots.stopped_W.all(axis=1) | (slots.round >= protocol.rounds)
    index_U = jnp.where(ended_U, slots.fit, X)  # out of bounds: dropped
    found_XWYZ = state.found_XWYZ.at[index_U].set(slots.best_WYZ, mode="drop")
    right_XW = state.right_XW.at[index_U].set(slots.right_W, mode="drop")
    following_U = state.queued + jnp.cumsum(ended_U) - 1
    fresh = jax.vmap(lambda number: _fresh_slot(number, first_WYZ))(following_U)
    slots = jax.tree.map(
        lambda new, old: jnp.where(ended_U.reshape(-1, *[1] * (old.ndim - 1)), new, old),
        fresh,
        slots,
    )
    return ProbeState(slots, jnp.minimum(state.queued + ended_U.sum(), X), found_XWYZ, right_XW)


def _round(x_MZ: jax.Array, y_M: jax.Array, fits: Fits, slot: Slots, protocol: Protocol) -> Slots:
    """Train one slot for `epoch_size` epochs, score it, and keep the best weights."""
    batches = fits.orders.shape[2] // protocol.batch

    def step(number: jax.Array, state: tuple) -> tuple:
        epoch = slot.round * protocol.epoch_size + number // batches
        batch = probe_step.FitBatch(slot.fit, epoch, number % batches)
        return probe_step.step(x_MZ, y_M, fits, batch, state, protocol)

    state = (slot.steps, slot.now_WYZ, *slot.moments)
    state = jax.lax.fori_loop(0, protocol.epoch_size * batches, step, state)
    steps, now_WYZ, *moments = state
    right_W = probe_step.right(x_MZ, y_M, fits, slot.fit, now_WYZ)
    better_W = ~slot.stopped_W & (right_W > slot.right_W)
    worse_W = ~slot.stopped_W & ~better_W
    return Slots(
        slot.fit,
        slot.round + 1,
        steps,
        now_WYZ,
        tuple(moments),
        jnp.where(better_W[:, None, None], now_WYZ, slot.best_WYZ),
        jnp.where(better_W, right_W, slot.right_W),
        slot.worse_W + worse_W,
        slot.stopped_W | (worse_W & (slot.worse_W >= protocol.tenacity)),
    )
