"""Dropout whose masks belong to the tokens of sentences, wherever in a batch they are.

A token's key is made of its sentence's number and its position in the sentence, then folded for a
layer and for each site in a block. Folding and the bits of a mask are hashes of two 32-bit words:
threefry, which draws the run's own keys, would cost several times more here.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

_GOLDEN: Final = np.uint32(0x9E3779B9)
# Sites of a block. Of every token: inputs of the updates of keys and values; the queries' own.
KEYS, VALUES, QUERIES = range(3)
# Of the queries alone: inputs of the updates of linear layers, and results of the two branches.
QUERY, OUT, GATE, UP, DOWN, ATTENTION, MLP = range(7)


class Keys(NamedTuple):
    """One key a token, as two words."""

    low: UInt32[Array, "B T"]
    high: UInt32[Array, "B T"]


def drop(x: jax.Array, keys: Keys | None, rate: float) -> jax.Array:
    """Zero entries of `[B, T, ...]` with probability `rate`, scale up the rest; none without keys.

    Every token draws from its own key: its mask depends neither on its index in the batch nor on
    how the batch is sharded. The backward pass draws the mask again instead of saving it.
    """
    return x if keys is None or rate == 0.0 else _drop(x, keys, rate)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: jax.Array, keys: Keys, rate: float) -> jax.Array:
    shape = x.shape[2:]
    keys = Keys(*(word.reshape(word.shape + (1,) * len(shape)) for word in keys))
    feature = jnp.uint32(0)
    for axis, size in enumerate(shape):
        feature = feature * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return jnp.where(is_kept(keys, feature, rate), x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


_drop.defvjp(
    lambda x, keys, rate: (_drop(x, keys, rate), keys),
    lambda rate, keys, dy: (_drop(dy, keys, rate), None),
)


def is_kept(keys: Keys, feature: jax.Array, rate: float) -> jax.Array:
    """Return what dropout keeps: a hash of a token's key and a feature's number decides.

    Multiplications and shifts fuse into the operation that uses the mask.
    """
    bits = _mixed(keys.low ^ (feature * _GOLDEN), keys.high)
    return bits >= jnp.uint32(round(rate * 2**32))


def _mixed(low: jax.Array, high: jax.Array) -> jax.Array:
    """A hash of two words.

    Source: the constants of C. Wellons, "Prospecting for hash functions" (lowbias32).
    """
    x = (low ^ (low >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ high) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


@overload
def fold_keys(keys: Keys, data: int | jax.Array) -> Keys: ...
@overload
def fold_keys(keys: None, data: int | jax.Array) -> None: ...
@overload
def fold_keys(keys: Keys | None, data: int | jax.Array) -> Keys | None: ...
def fold_keys(keys: Keys | None, data: int | jax.Array) -> Keys | None:
    """Derive other keys, by a number for all tokens or one for each; None stays None."""
    if keys is None:
        return None
    step = (jnp.asarray(data).astype(jnp.uint32) + 1) * _GOLDEN
    low = _mixed(keys.low ^ step, keys.high)
    return Keys(low, _mixed(keys.high ^ step, low))


def token_keys(
    key: Key[Array, ""], sentence_BT: Int[Array, "B T"], position_BT: Int[Array, "B T"]
) -> Keys:
    """One key a token, of its sentence's number and its position in the sentence alone."""
    low, high = jax.random.bits(key, (2,))
    whole = Keys(jnp.full(sentence_BT.shape, low), jnp.full(sentence_BT.shape, high))
    return fold_keys(fold_keys(whole, sentence_BT), position_BT)
