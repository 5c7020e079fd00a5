"""Runners: how a decoder computes a batch. One program for all layers, or one call per layer.

`encode` and `prefill` are the jitted functions of the whole decoder. `WholeRunner` calls them: an
accelerator encodes so. A CPU encodes with `layerwise.LayerwiseRunner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from prompteol_jax.methods.edits import Edit, apply_edits
from prompteol_jax.methods.pooling import LAST, Pooling, read_states
from prompteol_jax.models.decoder import Decoder, KVCache, Rows


@runtime_checkable
class Runner(Protocol):
    """What the pipeline asks of a decoder."""

    def prefill(self, ids_C: Int[np.ndarray, "C"]) -> Any:
        """Return the keys and values of a prompt prefix in every layer."""
        ...

    def encode(self, rows: Rows, cache: Any, reading: Reading) -> Float[Array, "B S W"]:
        """Return the vectors of the sentences in `rows`, float32.

        Args:
            cache: result of `prefill` for the prefix that every sentence continues; or None.
        """
        ...


@dataclass(frozen=True)
class Reading:
    """What is done to the states on their way, and what is taken of them.

    Attributes:
        first_BS: int array of the first positions that the pooling reads; None where it reads last
            tokens only.
    """

    pooling: Pooling = LAST
    edits: tuple[Edit, ...] = ()
    first_BS: Any = None


jax.tree_util.register_dataclass(
    Reading, data_fields=["edits", "first_BS"], meta_fields=["pooling"]
)


@jax.jit
def encode(model: Decoder, rows: Rows, cache: KVCache | None = None) -> Float[Array, "B S D"]:
    """Return the final hidden states of the last tokens of the sentences in `rows`, float32.

    Args:
        cache: result of `prefill` for the prefix that every sentence continues.
    """
    return model(rows, cache)


@jax.jit
def prefill(model: Decoder, ids_C: Int[Array, "C"]) -> KVCache:
    """Return the keys and values of a prompt prefix, for all sentences that continue it."""
    return model.prefill(ids_C)


@jax.jit
def encode_as(
    model: Decoder, rows: Rows, cache: KVCache | None, reading: Reading
) -> Float[Array, "B S W"]:
    """`encode` with any pooling and with edits."""
    pooling, first_BS = reading.pooling, reading.first_BS
    take = partial(read_states, pooling, first_BS=first_BS, last_BS=rows.last_BS)

    def edit(x_BTD: jax.Array, layer: jax.Array) -> jax.Array:
        return apply_edits(reading.edits, x_BTD, layer, rows.last_BS)

    x_BTD, inner_LBSD, context = model.inner(
        rows,
        cache,
        edit=edit if reading.edits else None,
        read=take if pooling.layers == "all" else None,
    )
    final_BSE = end_as(model, rows, x_BTD, context, None if cache is None else cache.last, reading)
    return pooling.join([] if inner_LBSD is None else list(inner_LBSD), final_BSE)


def end_as(
    model: Decoder, rows: Rows, x_BTD: jax.Array, context: Any, prefix: Any, reading: Reading
) -> Float[Array, "B S E"]:
    """Return what a pooling takes of the last layer, from the input of the last block."""
    if reading.pooling.tokens == "last":
        return model.end(rows, x_BTD, context, prefix)
    z_BTE = model.end_everywhere(x_BTD, context, prefix)
    return read_states(reading.pooling, z_BTE, reading.first_BS, rows.last_BS)


@jax.jit
def encode_after(model: Decoder, rows: Rows, caches: KVCache) -> Float[Array, "A B S D"]:
    """`encode` after each of A prefixes, stacked along a leading axis of `caches`."""
    return jax.vmap(lambda cache: encode(model, rows, cache))(caches)


@jax.jit
def prefill_padded(model: Decoder, ids_AC: Int[Array, "A C"], tokens_A: Int[Array, "A"]) -> KVCache:
    """`prefill` of A prefixes, each padded after its tokens, for `encode_after`."""

    def one(ids_C: jax.Array, tokens: jax.Array) -> KVCache:
        return model.prefill(ids_C)._replace(tokens=tokens)

    return jax.vmap(one)(ids_AC, tokens_A)


@dataclass(frozen=True)
class WholeRunner:
    """A decoder that runs as one program."""

    decoder: Decoder

    def prefill(self, ids_C: Int[np.ndarray, "C"]) -> KVCache:
        """Return the keys and values of a prompt prefix in every layer."""
        return prefill(self.decoder, ids_C)

    def encode(self, rows: Rows, cache: KVCache | None, reading: Reading) -> Float[Array, "B S W"]:
        """Return the vectors of the sentences in `rows`, float32."""
        if reading.pooling == LAST and not reading.edits:
            return encode(self.decoder, rows, cache)
        return encode_as(self.decoder, rows, cache, reading)
