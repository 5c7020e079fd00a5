"""Rows of tokens, the cached prefix, and what every layer of a decoder sees of them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompteol_jax.models.rope import Rope
from prompteol_jax.ops.context import LONG, AttentionContext, LayerInfo, visible
from prompteol_jax.ops.rope import Rope as RopeTable
from prompteol_jax.ops.rope import rope_table


class Rows(NamedTuple):
    """Token rows, right-padded; padding ids never matter.

    The arrays are those of jax or of numpy, or `jax.ShapeDtypeStruct` where only shapes count.

    Attributes:
        ids_BT: token ids, the shared prefix left out.
        last_BS: indices of the last tokens of the S sentences of each row.
        start_BT: in packed rows, the index of the first token of each token's sentence.
    """

    ids_BT: Int[Any, "B T"]
    last_BS: Int[Any, "B S"]
    start_BT: Int[Any, "B T"] | None = None


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
    def mask(self) -> Bool[Array, "C"] | None:
        """Which of the C tokens are the prefix; None for all."""
        return None if self.tokens is None else jnp.arange(self.last[0].shape[0]) < self.tokens


def positions(rows: Rows, offset: Any) -> Int[Array, "b T"]:
    """Return the position of every token in its text.

    Args:
        offset: tokens of the prefix, before the first position of a row.
    """
    index_BT = jnp.arange(rows.ids_BT.shape[1])[None]
    return offset + (index_BT if rows.start_BT is None else index_BT - rows.start_BT)


def last_tokens(rows: Rows) -> Int[Array, "B T"]:
    """Return the index of the last token of each token's text."""
    if rows.start_BT is None:
        return jnp.broadcast_to(rows.last_BS.max(1, keepdims=True), rows.ids_BT.shape)
    start_BS = jnp.take_along_axis(rows.start_BT, rows.last_BS, axis=1)
    own_BTS = rows.start_BT[:, :, None] == start_BS[:, None]
    return jnp.where(own_BTS, rows.last_BS[:, None], 0).max(-1)


def text_tokens(rows: Rows, position_BT: Int[Array, "b T"]) -> Int[Array, "B T"]:
    """Return how many tokens each token's text has, the prefix included."""
    position_BT = jnp.broadcast_to(position_BT, rows.ids_BT.shape)
    return jnp.take_along_axis(position_BT, last_tokens(rows), axis=1) + 1


@dataclasses.dataclass(frozen=True)
class Layers:
    """What a family's layers are, but for their weights.

    Attributes:
        depth: layers that the model runs.
        D, H, F: widths of the residual stream, of a head, and of the feed-forward layer.
        ropes: kinds of rope tables; none for a family without rope.
        rope_L: number of each layer's rope table; None where there is one at most.
        window_L: window of each layer, None for all tokens; None where no layer has a window.
        causal: tokens see none after themselves; otherwise all of their text within the window.
    """

    depth: int
    D: int
    H: int
    F: int
    ropes: tuple[Rope, ...] = ()
    rope_L: tuple[int, ...] | None = None
    window_L: tuple[int | None, ...] | None = None
    causal: bool = True

    @property
    def largest_matrix(self) -> int:
        """Weights in a layer's largest matrix."""
        return self.D * self.F

    def with_local_rope(self, rope: Rope) -> Layers:
        """Return the same layers, those with a window with this rope."""
        if self.window_L is None or self.ropes == (rope,):
            return self
        rope_L = tuple(int(window is not None) for window in self.window_L)
        return dataclasses.replace(self, ropes=(*self.ropes, rope), rope_L=rope_L)

    def info(self, layer: int) -> LayerInfo:
        """Return what is different in one layer."""
        return LayerInfo(layer, self._window(layer), self.rope_L and self.rope_L[layer])

    def scanned(self) -> LayerInfo:
        """Return the same for all layers but the last, stacked."""
        numbers = range(self.depth - 1)
        window_L = self.window_L and jnp.array([self._window(n) for n in numbers], jnp.int32)
        rope_L = self.rope_L and jnp.array(self.rope_L[: self.depth - 1], jnp.int32)
        return LayerInfo(jnp.arange(self.depth - 1), window_L, rope_L)

    def _window(self, layer: int) -> int | None:
        """Return a layer's window; where others have one, a number above every distance."""
        if self.window_L is None:
            return None
        window = self.window_L[layer]
        return np.iinfo(np.int32).max if window is None else window

    @property
    def short_tokens(self) -> int | None:
        """Most tokens of a text whose states are those of a shared prefix; None for any text."""
        if not self.causal:
            return 0
        return min((r.short_tokens for r in self.ropes if r.short_tokens is not None), default=None)

    def context(
        self, rows: Rows, offset: Any, prefix_mask_C: Any = None, prefix_tokens: int = 0
    ) -> AttentionContext:
        """Return what all layers see where every token of the rows is a query.

        Args:
            offset: tokens of the prefix, before the first position of a row.
            prefix_mask_C: tokens of a padded cached prefix that are real; None where all are.
            prefix_tokens: tokens of the prefix at the beginning of the rows themselves.
        """
        T = rows.ids_BT.shape[1]
        position_BT = positions(rows, offset)
        end_BT = None if self.causal else last_tokens(rows) + 1
        return AttentionContext(
            visible(T, None, rows.start_BT, prefix_tokens, end_BT) if T <= LONG else None,
            end_BT=end_BT,
            position_BT=position_BT if self._windows_matter(T, offset, prefix_mask_C) else None,
            ropes=tuple(self._table(rope, rows, position_BT) for rope in self.ropes),
            segment_start_BT=rows.start_BT,
            prefix_mask_C=prefix_mask_C,
            prefix_tokens=prefix_tokens,
        )

    def _windows_matter(self, T: int, offset: Any, prefix_mask_C: Any) -> bool:
        """Return whether a text in rows of T tokens can be longer than a window."""
        windows = [window for window in self.window_L or () if window is not None]
        if not isinstance(offset, int):
            offset = None if prefix_mask_C is None else prefix_mask_C.shape[0]
        return bool(windows) and (offset is None or offset + T > min(windows))

    def _table(self, rope: Rope, rows: Rows, position_BT: Any) -> RopeTable:
        def table(*, long: bool) -> RopeTable:
            frequency = jnp.asarray(rope.inverse_frequencies(self.H, long=long))
            return rope_table(position_BT, frequency, rope.magnitude)

        if rope.short_tokens is None:
            return table(long=False)
        is_long = text_tokens(rows, position_BT)[..., None] > rope.short_tokens
        pairs = zip(table(long=True), table(long=False), strict=True)
        cos, sin = (jnp.where(is_long, a, b) for a, b in pairs)
        return cos, sin
