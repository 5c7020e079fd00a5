"""Runners: how a decoder computes a batch. One program for all layers, or one call per layer.

`encode` and `prefill` are the jitted functions of the whole decoder. `WholeRunner` calls them: an
accelerator encodes so. A CPU encodes with `layerwise.LayerwiseRunner`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompteol_jax import nn
from prompteol_jax.methods.edits import Edit, apply_edits
from prompteol_jax.methods.pooling import LAST, Pooling, read_states
from prompteol_jax.methods.steps import NOTHING, HeadsTap, Steps, StepTap
from prompteol_jax.models.decoder import Decoder, KVCache, Rows
from prompteol_jax.ops.platform_jit import PlatformJit
from prompteol_jax.ops.scan import Saved
from prompteol_jax.ops.tap import NO_TAP, Tap


@runtime_checkable
class Runner(Protocol):
    """What the pipeline asks of a decoder."""

    def prefill(self, ids_C: Int[np.ndarray, "C"], length: int | None = None) -> Any:
        """Return the keys and values of a prompt prefix in every layer.

        Args:
            length: tokens that the prefix is padded to, so that several share a program.
        """
        ...

    def encode(self, rows: Rows, cache: Any, reading: Reading) -> Float[Array, "B S W"]:
        """Return the vectors of the sentences in `rows`, float32.

        Args:
            cache: result of `prefill` for the prefix that every sentence continues; or None.
        """
        ...

    def heads(self, rows: Rows, cache: Any, block: int) -> Float[Array, "B S N H"]:
        """Return the heads' outputs of the last tokens in one block, and run no later block."""
        ...


@dataclass(frozen=True)
class Reading:
    """What is done to the states on their way, and what is taken of them.

    Attributes:
        first_BS: int array of the first positions that the pooling reads; None where it reads last
            tokens only.
        steps: what is done inside attention.
    """

    pooling: Pooling = LAST
    edits: tuple[Edit, ...] = ()
    first_BS: Any = None
    steps: Steps = NOTHING

    @property
    def plain(self) -> bool:
        """Whether the last token's state is read, and nothing is changed."""
        return self.pooling == LAST and not self.edits and self.steps.none

    def tap(self, layer: Any, rows: Rows) -> Tap:
        """Return the tap of one layer."""
        return NO_TAP if self.steps.none else StepTap(self.steps, layer, rows.last_BS)


jax.tree_util.register_dataclass(
    Reading, data_fields=["edits", "first_BS", "steps"], meta_fields=["pooling"]
)


def _jitted(function: Callable[..., Any]) -> PlatformJit:
    """Compile a function of a decoder, its first argument, and of others."""
    return PlatformJit(function, lambda model, *_, **__: model.layers.largest_matrix)


@_jitted
def encode(model: Decoder, rows: Rows, cache: KVCache | None = None) -> Float[Array, "B S D"]:
    """Return the final hidden states of the last tokens of the sentences in `rows`, float32.

    Args:
        cache: result of `prefill` for the prefix that every sentence continues.
    """
    return model(rows, cache)


@_jitted
def prefill(model: Decoder, ids_C: Int[Array, "C"]) -> KVCache:
    """Return the keys and values of a prompt prefix, for all sentences that continue it."""
    return model.prefill(ids_C)


@_jitted
def encode_as(
    model: Decoder, rows: Rows, cache: KVCache | None, reading: Reading
) -> Float[Array, "B S W"]:
    """`encode` with any pooling and with edits."""
    pooling, first_BS = reading.pooling, reading.first_BS
    take = partial(read_states, pooling, first_BS=first_BS, last_BS=rows.last_BS)

    def edit(x_BTD: jax.Array, layer: jax.Array) -> jax.Array:
        return apply_edits(reading.edits, x_BTD, layer, rows.last_BS, rows.start_BT)

    x_BTD, (inner_LBSD, outputs_LBSD), context = model.inner(
        rows,
        cache,
        edit=edit if reading.edits else None,
        read=take if pooling.layers == "all" else None,
        tap=None if reading.steps.none else partial(reading.tap, rows=rows),
    )
    prefix = None if cache is None else cache.last
    final_BSE, output_BSD = end_as(model, rows, x_BTD, context, prefix, reading)
    return join(reading, inner_LBSD, final_BSE, outputs_LBSD, output_BSD)


def end_as(
    model: Decoder, rows: Rows, x_BTD: jax.Array, context: Any, prefix: Any, reading: Reading
) -> tuple[Float[Array, "B S E"], Any]:
    """Return what a pooling takes of the last layer, and what its tap found.

    Args:
        x_BTD: input of the last block.
    """
    tap = reading.tap(model.depth - 1, rows)
    if reading.pooling.tokens == "last":
        return model.end(rows, x_BTD, context, prefix, tap=tap), tap.found
    z_BTE = model.end_everywhere(x_BTD, context, prefix, tap)
    return read_states(reading.pooling, z_BTE, reading.first_BS, rows.last_BS), tap.found


def join(
    reading: Reading, inner: Any, final_BSE: jax.Array, outputs: Any, output_BSD: Any
) -> Float[Array, "B S W"]:
    """Return the vectors: of states, or of the attention outputs that were collected.

    Args:
        inner: states after the blocks but the last, where they are read; outputs: what their taps
            collected.
    """
    if reading.steps.collect is None:
        return reading.pooling.join([] if inner is None else list(inner), final_BSE)
    if reading.pooling.layers == "all":
        return reading.pooling.join(list(outputs), output_BSD)
    return functools.reduce(jnp.add, outputs, output_BSD)


@_jitted
def auxiliary_heads(
    model: Decoder, rows: Rows, cache: KVCache | None, block: Int[Array, ""]
) -> Float[Array, "B S N H"]:
    """Return the heads' outputs of the last tokens in one block; later blocks do not run.

    The number of the block is an argument of the program: another one compiles nothing.
    """
    offset, mask_C = (0, None) if cache is None else (cache.length, cache.mask)
    x_BTD, context = model.begin(rows, offset, mask_C)
    prefixes = None if cache is None else cache.blocks
    xs = nn.to_scan((model.blocks, prefixes, model.layers.scanned()))

    def layer(number: jax.Array) -> Any:
        own = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), xs)
        return nn.from_scan(jax.tree.map(Saved, own))

    def step(number: jax.Array, x_BTD: jax.Array) -> jax.Array:
        block, prefix, info = layer(number)
        return block(Saved(x_BTD), context.of_layer(info), prefix)[0].value

    def inner(x_BTD: jax.Array) -> jax.Array:
        return heads_of(rows, x_BTD, context, *layer(block))

    def last(x_BTD: jax.Array) -> jax.Array:
        info = model.layers.info(model.depth - 1)
        return heads_of(rows, x_BTD, context, model.last, cache and cache.last, info)

    if model.depth == 1:
        return last(x_BTD)
    x_BTD = jax.lax.fori_loop(0, block, step, x_BTD)
    return jax.lax.cond(block < model.depth - 1, inner, last, x_BTD)


def heads_of(
    rows: Rows, x_BTD: jax.Array, context: Any, block: Any, prefix: Any, info: Any
) -> Float[Array, "B S N H"]:
    """Return the heads' outputs of the last tokens in a block, from its input."""
    tap = HeadsTap()
    context = dataclasses.replace(context.of_queries(rows.last_BS).of_layer(info), tap=tap)
    block(Saved(x_BTD), context, prefix)
    return tap.found


@_jitted
def encode_after(model: Decoder, rows: Rows, caches: KVCache) -> Float[Array, "A B S D"]:
    """`encode` after each of A prefixes, stacked along a leading axis of `caches`."""
    return jax.vmap(lambda cache: model(rows, cache))(caches)


@_jitted
def prefill_padded(model: Decoder, ids_AC: Int[Array, "A C"], tokens_A: Int[Array, "A"]) -> KVCache:
    """`prefill` of A prefixes, each padded after its tokens, for `encode_after`."""

    def one(ids_C: jax.Array, tokens: jax.Array) -> KVCache:
        return model.prefill(ids_C)._replace(tokens=tokens)

    return jax.vmap(one)(ids_AC, tokens_A)


def padded(ids_C: Int[np.ndarray, "C"], length: int) -> Int[np.ndarray, "c"]:
    """Return the ids of a prefix padded to a length; causal attention never reads the padding."""
    return np.concatenate([ids_C, np.zeros(length - len(ids_C), np.int32)])


@dataclass(frozen=True)
class WholeRunner:
    """A decoder that runs as one program."""

    decoder: Decoder

    def prefill(self, ids_C: Int[np.ndarray, "C"], length: int | None = None) -> KVCache:
        """Return the keys and values of a prompt prefix in every layer."""
        if length is None:
            return prefill(self.decoder, ids_C)
        tokens = np.int32(len(ids_C))
        return prefill(self.decoder, padded(ids_C, length))._replace(tokens=tokens)

    def encode(self, rows: Rows, cache: KVCache | None, reading: Reading) -> Float[Array, "B S W"]:
        """Return the vectors of the sentences in `rows`, float32."""
        if reading.plain:
            return encode(self.decoder, rows, cache)
        return encode_as(self.decoder, rows, cache, reading)

    def heads(self, rows: Rows, cache: KVCache | None, block: int) -> Float[Array, "B S N H"]:
        """Return the heads' outputs of the last tokens in one block, and run no later block."""
        return auxiliary_heads(self.decoder, rows, cache, np.int32(block))
