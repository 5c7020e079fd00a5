"""Rows of tokens, the cached prefix, and what every layer of a decoder sees of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompteol_jax.ops.context import AttentionContext, LayerInfo, visible
from prompteol_jax.ops.rope import Rope, rope_table


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


@runtime_checkable
class RopeConfig(Protocol):
    """How fast each pair of a head rotates."""

    def inverse_frequencies(self, H: int) -> np.ndarray:
        """Return radians a position for each of the H/2 pairs, float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Layers:
    """What a family's layers are, but for their weights.

    Attributes:
        depth: layers that the model runs, D: width of the residual stream, H: width of a head.
        ropes: kinds of rope tables; none for a family without rope.
        rope_L: number of each layer's rope table; None where there is one at most.
        window_L: window of each layer, None for all tokens; None where no layer has a window.
    """

    depth: int
    D: int
    H: int
    ropes: tuple[RopeConfig, ...] = ()
    rope_L: tuple[int, ...] | None = None
    window_L: tuple[int | None, ...] | None = None

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

    def context(
        self, rows: Rows, position_BT: Any, prefix_mask_C: Any = None, prefix_tokens: int = 0
    ) -> AttentionContext:
        """Return what all layers see where every token of the rows is a query.

        Args:
            prefix_mask_C: tokens of a padded cached prefix that are real; None where all are.
            prefix_tokens: tokens of the prefix at the beginning of the rows themselves.
        """
        return AttentionContext(
            visible(rows.ids_BT.shape[1], None, rows.start_BT, prefix_tokens),
            position_BT=None if self.window_L is None else position_BT,
            ropes=self._tables(position_BT),
            segment_start_BT=rows.start_BT,
            prefix_mask_C=prefix_mask_C,
            prefix_tokens=prefix_tokens,
        )

    def _tables(self, position_BT: Any) -> tuple[Rope, ...]:
        frequencies: Sequence[Any] = [rope.inverse_frequencies(self.H) for rope in self.ropes]
        return tuple(rope_table(position_BT, jnp.asarray(f)) for f in frequencies)
