"""Bits: bfloat16 that a CPU slices without widening."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from prompteol_jax.ops import platform


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
