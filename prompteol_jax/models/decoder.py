"""The decoder that every family shares: embed, scan the blocks, and end in one token a sentence.

    ids_BT -> embedding -> blocks 0 .. L-2, scanned -> last block, for last tokens -> final norm

The last block is separate because only a sentence's last token is needed from it: keys and values
are computed for every token, queries and all that follows for one. No language-model head is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from prompteol_jax import nn
from prompteol_jax.mesh import constrain, gathered
from prompteol_jax.models.context import KVCache, Layers, Rows, positions
from prompteol_jax.ops import dropout
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext
from prompteol_jax.ops.einsum import barrier
from prompteol_jax.ops.scan import Remat, Saved, Tape, scan_layers
from prompteol_jax.ops.tap import NO_TAP, Tap
from prompteol_jax.quant import formats as quant

Edit = Callable[[jax.Array, jax.Array], jax.Array]  # (x_BTD, layer) -> x_BTD
Read = Callable[[jax.Array], jax.Array]
MakeTap = Callable[[jax.Array | int], Tap]  # layer -> its tap


class Decoder(nnx.Module):
    """A decoder-only language model without its head.

    Args:
        embedding: `(ids_BT, position_BT) -> x_BTD`.
        blocks: blocks 0 .. L-2, their arrays stacked along a leading axis; None where others run
            them, between `begin` and `end`.
        last: block L-1; the same class as `blocks`.
        final_norm: `x_BSD -> z_BSD`, final norm and projection; the identity for an inner layer.
        layers: what the blocks are, but for their weights.
        dtype: of activations.
        fsdp: whether matrices are sharded over data, and gathered on use.

    A block is called with `(x, context, prefix)`, its input as a `Saved`, and returns its output
    for the context's queries with the keys and values of every token; `keys_values(x_BTD, context)`
    returns those alone.
    """

    def __init__(
        self,
        *,
        embedding: nnx.Module,
        blocks: nnx.Module | None,
        last: nnx.Module,
        final_norm: nnx.Module,
        layers: Layers,
        dtype: Any,
        fsdp: bool = False,
    ):
        self.embedding: Any = embedding  # a family's module, with members that nnx.Module lacks
        self.blocks = blocks
        self.last: Any = last  # likewise
        self.final_norm = final_norm
        self.layers = layers
        self.dtype = jnp.dtype(dtype)
        self.fsdp = fsdp

    def __call__(
        self,
        rows: Rows,
        cache: KVCache | None = None,
        keys: dropout.Keys | None = None,
        *,
        remat: Remat = "none",
        prefix_tokens: int = 0,
    ) -> Float[Array, "B S D"]:
        """Return final hidden states of the sentences' last tokens, float32.

        Args:
            cache: prefix of every row; no text may then have more than `layers.short_tokens`.
            keys: dropout keys, one a token; None switches all dropout off.
            remat: what the backward pass recomputes: nothing, all but matrix products, or all.
            prefix_tokens: tokens of the prefix at the beginning of every packed row, where there is
                no cache; a sentence's positions count from there on.
        """
        x_BTD, _, context = self._trunk(rows, cache, keys, remat, prefix_tokens=prefix_tokens)
        prefix = None if cache is None else cache.last
        return self.end(rows, x_BTD, context, prefix, keys)

    def inner(
        self,
        rows: Rows,
        cache: KVCache | None = None,
        *,
        edit: Edit | None = None,
        read: Read | None = None,
        tap: MakeTap | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, Any], AttentionContext]:
        """Run all blocks but the last, for a caller who ends them itself, without dropout.

        Args:
            edit: `edit(x_BTD, layer)` returns what the block `layer` gets in place of x_BTD; it is
                called before every block, the last one included.
            read: `read(x_BTD)` is collected after each of these blocks.
            tap: `tap(layer)` returns what changes and reads the attention of a block.
        Returns: the last block's input; what `read` and the taps found, stacked over layers; and
            the context.
        """
        x_BTD, (_, *found), context = self._trunk(
            rows, cache, None, "none", edit=edit, read=read, tap=tap
        )
        if edit is not None:
            x_BTD = edit(x_BTD, jnp.int32(self._scanned))
        return x_BTD, (found[0], found[1]), context

    @jax.named_scope("prefix")
    def prefill(
        self,
        ids_C: Int[Array, "C"] | Int[np.ndarray, "C"],
        keys: dropout.Keys | None = None,
        *,
        remat: Remat = "none",
    ) -> KVCache:
        """Return keys and values of a prefix, to be shared by every row that continues it.

        Its dropout masks are drawn once and shared likewise.
        """
        rows = Rows(ids_C[None], jnp.zeros((1, 1), jnp.int32))
        x_BTD, (kv, *_), context = self._trunk(rows, None, keys, remat)
        context = context.of_layer(self.layers.info(self._scanned), keys)
        k_BTKH, v_BTKH = self.last.keys_values(x_BTD, context)
        return KVCache((kv[0][:, 0], kv[1][:, 0]), (k_BTKH[0], v_BTKH[0]))

    @property
    def width(self) -> int:
        """Width D of the residual stream."""
        return self.layers.D

    @property
    def word_embedding(self) -> Float[Array, "V E"]:
        """The table of the word embedding, for a tied head; gathered over data in a mesh."""
        table_VE = self.embedding.tokens[...]
        return gathered(table_VE, "VE") if self.fsdp else table_VE

    @property
    def quantized(self) -> bool:
        """Whether matrices of linear layers are."""
        leaves = jax.tree.leaves(self.last, is_leaf=lambda x: isinstance(x, quant.Quantized))
        return any(isinstance(leaf, quant.Quantized) for leaf in leaves)

    @property
    def depth(self) -> int:
        """Blocks that the model runs."""
        return self.layers.depth

    @property
    def _scanned(self) -> int:
        return self.depth - 1

    def without_blocks(self) -> Decoder:
        """Return the same decoder for a caller that runs blocks 0 .. L-2 itself."""
        return Decoder(
            embedding=self.embedding,
            blocks=None,
            last=self.last,
            final_norm=self.final_norm,
            layers=self.layers,
            dtype=self.dtype,
            fsdp=self.fsdp,
        )

    def begin(
        self,
        rows: Rows,
        offset: int | Int[Array, ""],
        prefix_mask_C: Array | None = None,
        prefix_tokens: int = 0,
    ) -> tuple[Float[Array, "B T D"], AttentionContext]:
        """Return what the first block gets: the embedding of every token, and the context.

        Args:
            offset: tokens of the prefix, before the first position of a row.
            prefix_mask_C: which of them are real, where the prefix is padded.
            prefix_tokens: how many of them are at the beginning of the rows themselves.
        """
        x_BTD = self.embedding(rows.ids_BT, positions(rows, offset)).astype(self.dtype)
        context = self.layers.context(rows, offset, prefix_mask_C, prefix_tokens)
        return constrain(x_BTD, "BTD"), context

    def end(
        self,
        rows: Rows,
        x_BTD: Float[Array, "B T D"],
        context: AttentionContext,
        prefix: KeysValues | None,
        keys: dropout.Keys | None = None,
        tap: Tap = NO_TAP,
    ) -> Float[Array, "B S E"]:
        """Run the last block, for last tokens alone, and what follows it."""
        context = dataclasses.replace(context.of_queries(rows.last_BS), tap=tap)
        x_BSD, _ = self._last(x_BTD, context, prefix, keys)
        with jax.named_scope("pool"):
            return self.final_norm(x_BSD).astype(jnp.float32)

    def end_everywhere(
        self,
        x_BTD: Float[Array, "B T D"],
        context: AttentionContext,
        prefix: KeysValues | None,
        tap: Tap = NO_TAP,
    ) -> Float[Array, "B T E"]:
        """Run the last block for every token, and what follows it."""
        context = dataclasses.replace(context, tap=tap)
        x_BTD, _ = self._last(x_BTD, context, prefix, None)
        with jax.named_scope("pool"):
            return self.final_norm(x_BTD).astype(jnp.float32)

    def _last(
        self,
        x_BTD: jax.Array,
        context: AttentionContext,
        prefix: KeysValues | None,
        keys: dropout.Keys | None,
    ) -> tuple[jax.Array, Any]:
        context = context.of_layer(self.layers.info(self._scanned), keys)
        last = self.last
        if self.fsdp:
            # XLA would gather these weights before the scan, and hold them while it runs.
            x_BTD, last = barrier((x_BTD, last))
        x, kv = last(Saved(x_BTD), context, prefix)
        return x.value, kv

    def _trunk(
        self,
        rows: Rows,
        cache: KVCache | None,
        keys: dropout.Keys | None,
        remat: Remat,
        *,
        prefix_tokens: int = 0,
        edit: Edit | None = None,
        read: Read | None = None,
        tap: MakeTap | None = None,
    ) -> tuple[jax.Array, tuple, AttentionContext]:
        """Run all blocks but the last over every token.

        Also return, stacked over these blocks, their keys and values, what `read` takes of the
        states after them, and what the taps found; and the context of every token. `edit`, `read`
        and `tap` get no gradient.
        """
        offset, mask_C = (prefix_tokens, None) if cache is None else (cache.length, cache.mask)
        x_BTD, context = self.begin(rows, offset, mask_C, prefix_tokens)

        def layer(x: Saved, xs: Any, consts: tuple, tape: Tape) -> tuple[jax.Array, tuple]:
            (block, prefix, info), (context, keys) = nn.from_scan(xs), consts
            own = NO_TAP if tap is None else tap(info.index)
            context = dataclasses.replace(context.of_layer(info, keys, tape), tap=own)
            x = x if edit is None else Saved(edit(x.value, info.index))
            x, kv = block(x, context, prefix)
            return x.value, (kv, None if read is None else read(x.value), own.found)

        prefixes = None if cache is None else cache.blocks
        xs = nn.to_scan((self.blocks, prefixes, self.layers.scanned()))
        x_BTD, ys = scan_layers(layer, x_BTD, xs, (context, keys), remat)
        return x_BTD, ys, context
