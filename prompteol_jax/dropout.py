"""Dropout whose masks belong to the tokens of sentences, wherever in a batch they are.

A token's key is made of its sentence's number and its place in the sentence, then folded for a
layer and split for the places in a block. The bits of a mask are a hash of such a key.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def drop(x: jax.Array, key_BT: jax.Array | None, rate: float) -> jax.Array:
    """Zero entries of `[B, T, ...]` with probability `rate`, scale up the rest; none without keys.

    Every token draws from a key of its own: its mask depends neither on its place in the batch nor
    on how the batch is cut. The backward pass draws the mask again instead of keeping it.
    """
    return x if key_BT is None or rate == 0.0 else _drop(x, key_BT, rate)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: jax.Array, key_BT: jax.Array, rate: float) -> jax.Array:
    kept = _random_bits(key_BT, x.shape[2:]) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(kept, x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


_drop.defvjp(
    lambda x, key_BT, rate: (_drop(x, key_BT, rate), key_BT),
    lambda rate, key_BT, dy: (_drop(dy, key_BT, rate), None),
)


def _random_bits(key_BT: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint32 `[B, T, *shape]`: a hash of each token's key and the place in `shape`.

    Threefry, which makes the keys, would cost several times more here than the hash, whose
    multiplications and shifts fuse into whatever uses the bits.

    Source: the mixing constants of C. Wellons, "Prospecting for hash functions" (lowbias32).
    """
    words = jax.random.key_data(key_BT)
    low, high = (words[..., i].reshape(key_BT.shape + (1,) * len(shape)) for i in (0, 1))
    place = jnp.uint32(0)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = low ^ (place * jnp.uint32(0x9E3779B9))
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ high) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def fold_keys(key_BT: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """Derive the tokens' keys for one place in the model; None stays None."""
    if key_BT is None:
        return None
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, data)))(key_BT)


def split_keys(key_BT: jax.Array | None, places: int) -> list[jax.Array | None]:
    """The tokens' keys for several places in a block, drawn at once."""
    if key_BT is None:
        return [None] * places
    key_BTP = jax.vmap(jax.vmap(partial(jax.random.split, num=places)))(key_BT)
    return [key_BTP[..., place] for place in range(places)]


def token_keys(key: jax.Array, sentence_BT: jax.Array, place_BT: jax.Array) -> jax.Array:
    """One key a token, of its sentence's number and its place in the sentence alone."""

    def draw(sentence: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, sentence), place)

    return jax.vmap(jax.vmap(draw))(sentence_BT, place_BT)
