"""The decoder that every family shares: embed, scan the blocks, and finish one token a sentence.

    ids_BT -> stem -> blocks 0 .. L-2, scanned -> last block, only for last tokens -> finish

The last block is held apart because only a sentence's last token is wanted from it: keys and values
are computed for every token, queries and all that follows for one. No language-model head is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from prompteol_jax import nn
from prompteol_jax.mesh import constrain
from prompteol_jax.ops import attention, dropout
from prompteol_jax.ops.scan import Remat, keep, scan_layers
from prompteol_jax.quant import formats as quant


class Rows(NamedTuple):
    """Token rows, right-padded; what fills the padding never matters.

    Attributes:
        ids_BT: token ids, the shared prefix left out.
        last_BS: places of the last tokens of the S sentences of each row.
        start_BT: in packed rows, the place of the first token of each token's own sentence.
    """

    ids_BT: Int[Array, "B T"]
    last_BS: Int[Array, "B S"]
    start_BT: Int[Array, "B T"] | None = None


class KVCache(NamedTuple):
    """Keys and values of a prefix, without a batch axis: L-1 layers stacked, and the last one.

    Attributes:
        tokens: of the prefix, where it is padded to more; None where all C are.
    """

    blocks: tuple[Float[Array, "L C K H"], Float[Array, "L C K H"]]
    last: tuple[Float[Array, "C K H"], Float[Array, "C K H"]]
    tokens: Int[Array, ""] | None = None

    @property
    def length(self) -> int | Int[Array, ""]:
        """Tokens in the prefix."""
        return self.last[0].shape[0] if self.tokens is None else self.tokens

    @property
    def real(self) -> Bool[Array, "C"] | None:
        """Which tokens are the prefix's own; None for all."""
        return None if self.tokens is None else jnp.arange(self.last[0].shape[0]) < self.tokens


class View(NamedTuple):
    """What a block sees of its surroundings, the same in every layer."""

    mask_BQT: Array
    angles: Any = None  # of every token's place: LLaMA's cosines and sines
    query_BQ: Array | None = None  # None: every token is a query
    real_C: Array | None = None  # tokens of a padded prefix that are real; None: all
    start_BT: Array | None = None  # of packed rows, where every token is a query; else None
    head: int | None = None  # tokens at the head of packed rows that all their sentences see

    @jax.named_scope("pool")
    def queries(self, x: jax.Array) -> jax.Array:
        """Take the rows' query tokens out of `[B, T, ...]`."""
        if self.query_BQ is None:
            return x
        index = self.query_BQ.reshape(self.query_BQ.shape + (1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    def query_keys(self, keys: dropout.Keys | None) -> dropout.Keys | None:
        """Take the query tokens' dropout keys."""
        if keys is None or self.query_BQ is None:
            return keys
        return jax.tree.map(self.queries, keys)

    def query_angles(self) -> Any:
        """The angles of the queries' places."""
        if self.query_BQ is None:
            return self.angles
        wide = (jnp.broadcast_to(a, (len(self.query_BQ), *a.shape[1:])) for a in self.angles)
        return tuple(self.queries(a) for a in wide)


def project_heads(
    block: Any, y_BTD: jax.Array, view: View, query_key: Any, keys: Sequence[Any]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Queries of the view's queries, keys and values of every token, before they are turned.

    Args:
        query_key, keys: of the dropout of the queries' map, and of that of keys and of values.
    """
    if view.query_BQ is None:
        q_BQNH, *kv = nn.together([block.q, block.k, block.v], y_BTD, [query_key, *keys])
        kv = _kept(*kv)
    else:
        q_BQNH = block.q(view.queries(y_BTD), query_key)
        kv = project_keys_values(block, y_BTD, keys)
    return keep(constrain(q_BQNH, "BQNH")), kv


def project_keys_values(
    block: Any, y_BTD: jax.Array, keys: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    """Keys and values of every token, before they are turned."""
    return _kept(*nn.together([block.k, block.v], y_BTD, keys))


def _kept(k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(keep(constrain(x, "BTKH")) for x in (k_BTKH, v_BTKH))


class Decoder(nnx.Module):
    """A decoder-only language model without its head.

    Args:
        stem: ids, places, keys -> x_BTD in the compute dtype; has `angles(place)`.
        blocks: blocks 0 .. L-2, their arrays stacked along a leading axis; None where others run
            them, between `begin` and `end`.
        last: block L-1; the same class as `blocks`.
        finish: x_BSD -> z_BSD, final norm and projection; the identity for an inner layer.
        dtype: of activations.
    """

    def __init__(
        self,
        stem: nnx.Module,
        blocks: nnx.Module | None,
        last: nnx.Module,
        finish: nnx.Module,
        dtype: Any,
    ):
        self.stem = stem
        self.blocks = blocks
        self.last = last
        self.finish = finish
        self.dtype = jnp.dtype(dtype)

    def __call__(
        self,
        rows: Rows,
        cache: KVCache | None = None,
        keys: dropout.Keys | None = None,
        *,
        remat: Remat = "none",
        head: int = 0,
    ) -> Float[Array, "B S D"]:
        """Final hidden states of the sentences' last tokens, float32.

        Args:
            keys: of dropout, one a token; None switches all dropout off.
            remat: what the backward pass recomputes: nothing, all but matrix products, or all.
            head: tokens of the prefix at the head of every packed row, where there is no cache; a
                sentence's tokens count their places from there on.
        """
        x_BTD, _, view = self._trunk(rows, cache, keys, remat, head=head)
        prefix = None if cache is None else cache.last
        return self.end(rows, x_BTD, view, prefix, dropout.fold_keys(keys, self._scanned))

    def inner(
        self,
        rows: Rows,
        cache: KVCache | None = None,
        *,
        edit: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        read: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any, View]:
        """Run all blocks but the last, for a caller who ends them itself, without dropout.

        Args:
            edit: `edit(x_BTD, layer)` gives what the block `layer` gets in place of x_BTD; it is
                called before every block, the last one included.
            read: `read(x_BTD)` is noted behind each of these blocks.
        Returns: the last block's input, what was noted, stacked over layers, and the view.
        """
        x_BTD, (_, noted), view = self._trunk(rows, cache, None, "none", edit=edit, read=read)
        if edit is not None:
            x_BTD = edit(x_BTD, jnp.int32(self._scanned))
        return x_BTD, noted, view

    @jax.named_scope("prefix")
    def prefill(
        self,
        ids_C: Int[Array, "C"],
        keys: dropout.Keys | None = None,
        *,
        remat: Remat = "none",
    ) -> KVCache:
        """Keys and values of a prefix, to be shared by every row that continues it.

        Its dropout masks are drawn once and shared likewise.
        """
        rows = Rows(ids_C[None], jnp.zeros((1, 1), jnp.int32))
        x_BTD, (kv, _), view = self._trunk(rows, None, keys, remat)
        keys = dropout.fold_keys(keys, self._scanned)
        k_BTKH, v_BTKH = self.last.keys_values(x_BTD, view, keys)
        return KVCache((kv[0][:, 0], kv[1][:, 0]), (k_BTKH[0], v_BTKH[0]))

    @property
    def width(self) -> int:
        """Width D of the residual stream."""
        return self.last.attention_norm.scale.shape[-1]

    @property
    def quantized(self) -> bool:
        """Whether the matrices of linear layers are."""
        return isinstance(self.last.q.w.get_value(), quant.Quantized)

    @property
    def depth(self) -> int:
        """Blocks that the model runs."""
        return self._scanned + 1

    @property
    def _scanned(self) -> int:
        return jax.tree.leaves(self.blocks)[0].shape[0]

    def begin(
        self,
        rows: Rows,
        offset: int | Int[Array, ""],
        keys: dropout.Keys | None = None,
        real_C: Bool[Array, "C"] | None = None,
        head: int = 0,
    ) -> tuple[Float[Array, "B T D"], View]:
        """What the first block gets: the embedding of every token, and what blocks see beside it.

        Args:
            offset: tokens of the prefix, before the first place of a row.
            real_C: which of them are its own, where it is padded to more.
            head: how many of them stand at the head of the rows themselves.
        """
        place_BT = jnp.arange(rows.ids_BT.shape[1])[None]
        place_BT = offset + (place_BT if rows.start_BT is None else place_BT - rows.start_BT)
        x_BTD = constrain(self.stem(rows.ids_BT, place_BT, keys).astype(self.dtype), "BTD")
        mask_BQT = attention.visible(rows.ids_BT.shape[1], None, rows.start_BT, head)
        angles = self.stem.angles(place_BT)
        view = View(mask_BQT, angles, None, real_C, rows.start_BT, head or None)
        return x_BTD, view

    def end(
        self,
        rows: Rows,
        x_BTD: Float[Array, "B T D"],
        view: View,
        prefix: tuple[Float[Array, "C K H"], Float[Array, "C K H"]] | None,
        keys: dropout.Keys | None = None,
    ) -> Float[Array, "B S E"]:
        """The last block, for last tokens alone, and what follows it, from what it gets."""
        mask_BQT = attention.visible(x_BTD.shape[1], rows.last_BS, rows.start_BT, view.head or 0)
        view = view._replace(mask_BQT=mask_BQT, query_BQ=rows.last_BS, start_BT=None)
        x_BSD, _ = self.last(x_BTD, view, prefix, keys)
        with jax.named_scope("pool"):
            return self.finish(x_BSD).astype(jnp.float32)

    def end_everywhere(
        self,
        x_BTD: Float[Array, "B T D"],
        view: View,
        prefix: tuple[Float[Array, "C K H"], Float[Array, "C K H"]] | None,
    ) -> Float[Array, "B T E"]:
        """The last block for every token, and what follows it, from what it gets."""
        x_BTD, _ = self.last(x_BTD, view, prefix, None)
        with jax.named_scope("pool"):
            return self.finish(x_BTD).astype(jnp.float32)

    def _trunk(
        self,
        rows: Rows,
        cache: KVCache | None,
        keys: dropout.Keys | None,
        remat: Remat,
        head: int = 0,
        edit: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        read: Callable[[jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple, View]:
        """Run all blocks but the last over every token.

        Also gives, stacked over these blocks, their keys and values, and what `read` takes of the
        states behind them; and the view of every token. `edit` and `read` get no gradient.
        """
        offset, real_C = (head, None) if cache is None else (cache.length, cache.real)
        stem_keys = dropout.fold_keys(keys, self._scanned + 1)
        x_BTD, view = self.begin(rows, offset, stem_keys, real_C, head)

        def layer(x_BTD: jax.Array, xs: tuple, beside: tuple) -> tuple[jax.Array, tuple]:
            (block, prefix, index), (view, keys) = nn.from_bits(xs), beside
            view = view._replace(head=head or None)
            x_BTD = x_BTD if edit is None else edit(x_BTD, index)
            x_BTD, kv = block(x_BTD, view, prefix, dropout.fold_keys(keys, index))
            return x_BTD, (kv, None if read is None else read(x_BTD))

        prefixes = None if cache is None else cache.blocks
        xs = nn.to_bits((self.blocks, prefixes, jnp.arange(self._scanned)))
        beside = view._replace(head=None), keys
        x_BTD, noted = scan_layers(layer, x_BTD, xs, beside, remat)
        return x_BTD, noted, view
