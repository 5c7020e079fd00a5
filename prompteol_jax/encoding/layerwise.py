"""A decoder whose blocks are called one by one: how a CPU encodes.

XLA's CPU compiler copies whatever a scan slices out of stacked weights, all weights for every slab.
Here each block has arrays of its own, views of the stacked ones, and one compiled block is called
for every layer. On an accelerator the scanned program of `slabs.encode` is the faster one: there a
slice is read in place, and a call costs more than a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from prompteol_jax.models.decoder import Decoder, Rows, View

KeysValues = tuple[Float[Array, "C K H"], Float[Array, "C K H"]]


class LayerwiseRunner:
    """The same functions as the jitted ones of `slabs`, each a call for every layer."""

    def __init__(self, decoder: Decoder):
        self._blocks = unstack(decoder.blocks)
        self._ends = Decoder(decoder.stem, None, decoder.last, decoder.finish, decoder.dtype)

    def prefill(self, ids_C: Int[np.ndarray, "C"]) -> list[KeysValues]:
        """Keys and values of a prompt prefix in every layer, once for all sentences."""
        rows = Rows(ids_C[None], np.zeros((1, 1), np.int32))
        x_BTD, view = _begin(self._ends, rows, 0)
        cache = []
        for block in self._blocks:
            x_BTD, kv = _block_with_keys(block, x_BTD, view)
            cache.append(kv)
        return [*cache, _last_keys(self._ends, x_BTD, view)]

    def encode(self, rows: Rows, cache: list[KeysValues] | None) -> Float[Array, "B S D"]:
        """Final hidden states of the last tokens of the sentences in `rows`, float32."""
        prefixes = [None] * (len(self._blocks) + 1) if cache is None else cache
        x_BTD, view = _begin(self._ends, rows, 0 if cache is None else cache[0][0].shape[0])
        for block, prefix in zip(self._blocks, prefixes, strict=False):
            x_BTD = _block(block, x_BTD, view, prefix)
        return _end(self._ends, rows, x_BTD, view, prefixes[-1])

    def encode_layers(self, rows: Rows, cache: list[KeysValues] | None) -> Float[Array, "B S w"]:
        """States of the last tokens behind every block, side by side: inner ones raw."""
        prefixes = [None] * (len(self._blocks) + 1) if cache is None else cache
        x_BTD, view = _begin(self._ends, rows, 0 if cache is None else cache[0][0].shape[0])
        states = []
        for block, prefix in zip(self._blocks, prefixes, strict=False):
            x_BTD = _block(block, x_BTD, view, prefix)
            states.append(_last_tokens(rows, x_BTD, view))
        states.append(_end(self._ends, rows, x_BTD, view, prefixes[-1]))
        return jnp.concatenate(states, axis=-1)

    def encode_mean(self, rows: Rows) -> Float[Array, "B D"]:
        """Mean of the final hidden states of all tokens of each row, a whole prompt, float32."""
        x_BTD, view = _begin(self._ends, rows, 0)
        for block in self._blocks:
            x_BTD = _block(block, x_BTD, view, None)
        return _end_in_mean(self._ends, rows, x_BTD, view)


def _in_turn(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call that several devices have finished before the next one begins.

    Simulated devices share the machine's threads: with many calls under way that exchange data,
    each can hold threads that another one waits for.
    """

    @functools.wraps(call)
    def run(*arguments: Any) -> Any:
        results = call(*arguments)
        if len(jax.tree.leaves(results)[0].devices()) > 1:
            jax.block_until_ready(results)
        return results

    return run


@_in_turn
@jax.jit
def _begin(ends: Decoder, rows: Rows, offset: jax.Array) -> tuple[jax.Array, View]:
    return ends.begin(rows, offset)


@_in_turn
@jax.jit
def _block(block: nnx.Module, x_BTD: jax.Array, view: View, prefix: Any) -> jax.Array:
    return block(x_BTD, view, prefix, None)[0]


@_in_turn
@jax.jit
@jax.named_scope("prefix")
def _block_with_keys(block: nnx.Module, x_BTD: jax.Array, view: View) -> tuple:
    x_BTD, (k_BTKH, v_BTKH) = block(x_BTD, view, None, None)
    return x_BTD, (k_BTKH[0], v_BTKH[0])


@_in_turn
@jax.jit
@jax.named_scope("prefix")
def _last_keys(ends: Decoder, x_BTD: jax.Array, view: View) -> KeysValues:
    k_BTKH, v_BTKH = ends.last.keys_values(x_BTD, view, None)
    return k_BTKH[0], v_BTKH[0]


@_in_turn
@jax.jit
def _last_tokens(rows: Rows, x_BTD: jax.Array, view: View) -> jax.Array:
    return view._replace(query_BQ=rows.last_BS).queries(x_BTD).astype(jnp.float32)


@_in_turn
@jax.jit
def _end(ends: Decoder, rows: Rows, x_BTD: jax.Array, view: View, prefix: Any) -> jax.Array:
    return ends.end(rows, x_BTD, view, prefix)


@_in_turn
@jax.jit
def _end_in_mean(ends: Decoder, rows: Rows, x_BTD: jax.Array, view: View) -> jax.Array:
    return ends.end_in_mean(rows, x_BTD, view)


def unstack(blocks: nnx.Module) -> list[nnx.Module]:
    """Cut blocks that are stacked along a leading axis into single ones, without copying a weight.

    Only a CPU can look at an array's memory; parts that start off a cache line are copied.
    """
    leaves, structure = jax.tree.flatten(blocks)
    layers = zip(*map(_layers, leaves), strict=True)
    return [jax.tree.unflatten(structure, layer) for layer in layers]


def _layers(stack: jax.Array) -> list[jax.Array]:
    place = stack.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    held = [(np.asarray(shard.data), shard.device) for shard in stack.addressable_shards]
    return [
        jax.make_array_from_single_device_arrays(
            stack.shape[1:], place, [jax.device_put(part[n], device) for part, device in held]
        )
        for n in range(stack.shape[0])
    ]
