"""Rows encoded in chunks, with memory for one chunk and the gradients of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prompteol_jax.models.decoder import KVCache
from prompteol_jax.ops import dropout

Encode = Callable[[Any, KVCache | None, Any], jax.Array]  # (rows, cache, keys) -> a result a row


def in_chunks(encode: Encode, chunks: int) -> Encode:
    """Return a function that encodes rows chunk by chunk and recomputes each in the backward pass.

    Rows are any tree of arrays with a row each. Chunks are strided, so that every row stays on its
    device of a mesh.

    Source: Gao et al. 2021 (GradCache), here as a scan over a checkpointed function.
    """
    if chunks == 1:
        return encode

    def chunked(rows: Any, cache: KVCache | None, keys: dropout.Keys | None) -> jax.Array:
        def split(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(len(x) // chunks, chunks, *x.shape[1:]), 0, 1)

        @jax.checkpoint
        def one_chunk(xs: tuple[Any, dropout.Keys | None]) -> jax.Array:
            return encode(xs[0], cache, xs[1])

        z_MbSD = jax.lax.map(one_chunk, jax.tree.map(split, (rows, keys)))
        return jnp.swapaxes(z_MbSD, 0, 1).reshape(-1, *z_MbSD.shape[2:])

    return chunked
