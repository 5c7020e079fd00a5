"""Bits: two codes of a byte, and bfloat16 that a CPU slices without widening."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from prompteol_jax.ops import platform


def unpack(bytes_: jax.Array) -> jax.Array:
    """Return the two codes of every byte, `[..., n]` to `[..., 2 n]`, the high bits first."""
    return (unpack_by_product if platform.current() == "tpu" else unpack_by_shifts)(bytes_)


def unpack_by_shifts(bytes_: jax.Array) -> jax.Array:
    """Return the two codes of every byte: the reference."""
    pairs = jnp.stack([bytes_ >> 4, bytes_ & 15], axis=-1)
    return pairs.reshape(*bytes_.shape[:-1], -1)


def unpack_by_product(bytes_: jax.Array) -> jax.Array:
    """Return the same; bytes are doubled by a product with zeros and ones, which is exact.

    A TPU lays an axis of two out as one of 128, so that it would move 64 times the bytes.
    """
    twice = jnp.repeat(jnp.eye(bytes_.shape[-1], dtype=jnp.bfloat16), 2, axis=1)
    both = jnp.matmul(bytes_.astype(jnp.bfloat16), twice, preferred_element_type=jnp.float32)
    both = both.astype(jnp.int32)
    is_second = jax.lax.broadcasted_iota(jnp.int32, both.shape, both.ndim - 1) % 2 == 1
    return jnp.where(is_second, both & 15, both >> 4)


def row_major(x: jax.Array) -> jax.Array:
    """Return an array with its last axis minor, as it is in arguments, on a TPU.

    XLA would choose another layout where bytes are unpacked, and copy a stack of all layers to it,
    or a gathered matrix from it. This way it copies what one layer has on one device.
    """
    if platform.current() != "tpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def to_bits(tree: Any) -> Any:
    """On a CPU, return a tree whose bfloat16 arrays are uint16 of the same bits.

    XLA's CPU compiler would widen the whole array to float32 before slicing or gathering. Its TPU
    compiler would copy the whole array to change its type, so elsewhere the tree is unchanged.
    """
    if platform.current() != "cpu":
        return tree
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x,
        tree,
    )


def from_bits(tree: Any) -> Any:
    """Undo `to_bits`, after the slicing."""
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x,
        tree,
    )


def lookup(table_VD: jax.Array, index: jax.Array) -> jax.Array:
    """Take rows of a table."""
    return from_bits(to_bits(table_VD)[index])
