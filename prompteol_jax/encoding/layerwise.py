"""The runner of a CPU: one call per layer.

XLA's CPU compiler copies every weight that a scan slices out of its stack, once a batch. Here each
block has its own arrays, views of the stacked ones, and one compiled block is called for every
layer. It is compiled so that a row has the same bits among few rows and among many. On an
accelerator the program of `runners.encode` is faster: there a slice is read in place, and a call
costs more than a block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from prompteol_jax.encoding.runners import Reading, end_as, heads_of, join, padded
from prompteol_jax.methods.edits import apply_edits
from prompteol_jax.methods.pooling import read_states
from prompteol_jax.methods.steps import Steps, StepTap
from prompteol_jax.models.decoder import Decoder, Rows
from prompteol_jax.ops import select
from prompteol_jax.ops.context import AttentionContext, LayerInfo
from prompteol_jax.ops.scan import Saved

KeysValues = tuple[Float[Array, "C K H"], Float[Array, "C K H"]]


class LayerCaches(NamedTuple):
    """Keys and values of a prefix in every layer.

    Attributes:
        tokens: of the prefix, where it is padded to more; None where all are.
    """

    layers: list[KeysValues]
    tokens: Any = None


class LayerwiseRunner:
    """The functions of `runners`, each as one call per layer."""

    def __init__(self, decoder: Decoder):
        assert decoder.blocks is not None  # only `without_blocks` has none
        self._blocks = unstack(decoder.blocks)
        self._ends = decoder.without_blocks()
        self._infos = [_changing(decoder.layers.info(n)) for n in range(decoder.depth - 1)]

    def prefill(self, ids_C: Int[np.ndarray, "C"], length: int | None = None) -> LayerCaches:
        """Return the keys and values of a prompt prefix in every layer."""
        tokens = None if length is None else np.int32(len(ids_C))
        ids_C = ids_C if length is None else padded(ids_C, length)
        rows = Rows(ids_C[None], np.zeros((1, 1), np.int32))
        x_BTD, context = _begin(self._ends, rows, 0)
        cache = []
        for block, info in zip(self._blocks, self._infos, strict=True):
            x_BTD, kv = _block_with_keys(block, x_BTD, context, info)
            cache.append(kv)
        return LayerCaches([*cache, _last_keys(self._ends, x_BTD, context)], tokens)

    def encode(
        self, rows: Rows, cache: LayerCaches | None, reading: Reading
    ) -> Float[Array, "B S W"]:
        """Return the vectors of the sentences in `rows`, float32."""
        x_BTD, context, prefixes = self._begun(rows, cache)
        inner, outputs = [], []
        for layer, block in enumerate(self._blocks):
            x_BTD = self._edited(x_BTD, layer, rows, reading)
            own = x_BTD, context, self._infos[layer], prefixes[layer]
            if reading.steps.none:
                x_BTD = _block(block, *own)
            else:
                x_BTD, output_BSD = _block_as(block, *own, (reading.steps, layer, rows.last_BS))
                outputs.append(output_BSD)
            if reading.pooling.layers == "all":
                inner.append(_read(x_BTD, rows, reading))
        x_BTD = self._edited(x_BTD, len(self._blocks), rows, reading)
        final_BSE, output_BSD = _end(self._ends, rows, x_BTD, context, prefixes[-1], reading)
        return join(reading, inner, final_BSE, outputs, output_BSD)

    def heads(self, rows: Rows, cache: LayerCaches | None, block: int) -> Float[Array, "B S N H"]:
        """Return the heads' outputs of the last tokens in one block, and run no later block."""
        x_BTD, context, prefixes = self._begun(rows, cache)
        for layer in range(block):
            x_BTD = _block(self._blocks[layer], x_BTD, context, self._infos[layer], prefixes[layer])
        if block == len(self._blocks):
            return _last_heads(self._ends, rows, x_BTD, context, prefixes[-1])
        own = self._blocks[block], prefixes[block], self._infos[block]
        return _heads(rows, x_BTD, context, *own)

    def _begun(
        self, rows: Rows, cache: LayerCaches | None
    ) -> tuple[jax.Array, AttentionContext, list]:
        """Return the first block's input and context, and each block's prefix."""
        if cache is None:
            return *_begin(self._ends, rows, 0), [None] * (len(self._blocks) + 1)
        C = cache.layers[0][0].shape[0]
        if cache.tokens is None:
            return *_begin(self._ends, rows, C), cache.layers
        mask_C = np.arange(C) < cache.tokens
        return *_begin(self._ends, rows, cache.tokens, mask_C), cache.layers

    def _edited(self, x_BTD: jax.Array, layer: int, rows: Rows, reading: Reading) -> jax.Array:
        return _edit(reading.edits, x_BTD, layer, rows) if reading.edits else x_BTD


def _compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a call for a CPU; the options are asked for at the first call."""

    @functools.cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(call, compiler_options=select.row_stable())

    @functools.wraps(call)
    def run(*arguments: Any) -> Any:
        return jitted()(*arguments)

    return run


def _in_turn(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call whose result waits until all of several devices have finished.

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
@_compiled
def _begin(
    ends: Decoder, rows: Rows, offset: jax.Array, mask_C: jax.Array | None = None
) -> tuple[jax.Array, AttentionContext]:
    return ends.begin(rows, offset, mask_C)


@_in_turn
@_compiled
def _block(
    block: nnx.Module, x_BTD: jax.Array, context: AttentionContext, info: LayerInfo, prefix: Any
) -> jax.Array:
    return block(Saved(x_BTD), context.of_layer(info), prefix)[0].value


@_in_turn
@_compiled
def _block_as(
    block: nnx.Module,
    x_BTD: jax.Array,
    context: AttentionContext,
    info: LayerInfo,
    prefix: Any,
    steps: tuple[Steps, jax.Array, jax.Array],
) -> tuple[jax.Array, Any]:
    tap = StepTap(*steps)
    context = dataclasses.replace(context.of_layer(info), tap=tap)
    x_BTD = block(Saved(x_BTD), context, prefix)[0].value
    return x_BTD, tap.found


@_in_turn
@_compiled
def _heads(
    rows: Rows,
    x_BTD: jax.Array,
    context: AttentionContext,
    block: nnx.Module,
    prefix: Any,
    info: LayerInfo,
) -> jax.Array:
    return heads_of(rows, x_BTD, context, block, prefix, info)


@_in_turn
@_compiled
def _last_heads(
    ends: Decoder, rows: Rows, x_BTD: jax.Array, context: AttentionContext, prefix: Any
) -> jax.Array:
    return heads_of(rows, x_BTD, context, ends.last, prefix, ends.layers.info(ends.depth - 1))


@_in_turn
@_compiled
@jax.named_scope("prefix")
def _block_with_keys(
    block: nnx.Module, x_BTD: jax.Array, context: AttentionContext, info: LayerInfo
) -> tuple:
    x, (k_BTKH, v_BTKH) = block(Saved(x_BTD), context.of_layer(info), None)
    return x.value, (k_BTKH[0], v_BTKH[0])


@_in_turn
@_compiled
@jax.named_scope("prefix")
def _last_keys(ends: Decoder, x_BTD: jax.Array, context: AttentionContext) -> KeysValues:
    context = context.of_layer(ends.layers.info(ends.depth - 1))
    k_BTKH, v_BTKH = ends.last.keys_values(x_BTD, context)
    return k_BTKH[0], v_BTKH[0]


@_in_turn
@_compiled
def _edit(edits: tuple, x_BTD: jax.Array, layer: jax.Array, rows: Rows) -> jax.Array:
    return apply_edits(edits, x_BTD, layer, rows.last_BS, rows.start_BT)


@_in_turn
@_compiled
def _read(x_BTD: jax.Array, rows: Rows, reading: Reading) -> jax.Array:
    return read_states(reading.pooling, x_BTD, reading.first_BS, rows.last_BS)


@_in_turn
@_compiled
def _end(
    ends: Decoder,
    rows: Rows,
    x_BTD: jax.Array,
    context: AttentionContext,
    prefix: Any,
    reading: Reading,
) -> tuple[jax.Array, Any]:
    return end_as(ends, rows, x_BTD, context, prefix, reading)


def _changing(info: LayerInfo) -> LayerInfo:
    """Return what differs by layer as arguments of one compiled block, which needs no index."""
    numbers = (None if n is None else np.int32(n) for n in info[1:])
    return LayerInfo(None, *numbers)


def unstack(blocks: nnx.Module) -> list[nnx.Module]:
    """Split blocks that are stacked along a leading axis, without a copy of their weights.

    Only a CPU's arrays can be viewed so; slices that do not start at a cache line are copied.
    """
    leaves, structure = jax.tree.flatten(blocks)
    layers = zip(*map(_layers, leaves), strict=True)
    return [jax.tree.unflatten(structure, layer) for layer in layers]


def _layers(stack: jax.Array) -> list[jax.Array]:
    layout = stack.sharding
    if isinstance(layout, NamedSharding):
        layout = NamedSharding(layout.mesh, PartitionSpec(*layout.spec[1:]))
    held = [(np.asarray(shard.data), shard.device) for shard in stack.addressable_shards]
    return [
        jax.make_array_from_single_device_arrays(
            stack.shape[1:], layout, [jax.device_put(data[n], device) for data, device in held]
        )
        for n in range(stack.shape[0])
    ]
