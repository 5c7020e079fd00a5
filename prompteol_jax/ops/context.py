"""What attention and a block see of their surroundings: one value, handed to every layer."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from prompteol_jax.ops import dropout
from prompteol_jax.ops.rope import Rope
from prompteol_jax.ops.scan import NONE, Tape
from prompteol_jax.ops.tap import NO_TAP, Tap

LONG: Final = 1024  # tokens of a row up to which one mask of all queries is made
HIDDEN: Final = -1e30  # finite: a softmax over a row of it is uniform, not NaN


class AttentionSpec(NamedTuple):
    """What a family's attention is, the same in every layer.

    Attributes:
        scale: factor of the scores; H^-1/2 in most families.
        softcap: bound c of the scores, c * tanh(score / c); None for no bound.
    """

    scale: float
    softcap: float | None = None

    def cap(self, scores: jax.Array) -> jax.Array:
        """Return the scores within the bound."""
        return soft_cap(scores, self.softcap)


class LayerInfo(NamedTuple):
    """What changes from layer to layer; scanned together with the layers' weights.

    Attributes:
        index: number of the layer.
        window: a query at position p sees the keys at positions p - window + 1 to p; None for all.
        rope: number of the layer's rope table; None where there is one table or none.
    """

    index: Any
    window: Any = None
    rope: Any = None


def soft_cap(scores: jax.Array, cap: float | None) -> jax.Array:
    """Bound scores smoothly, cap * tanh(scores / cap); None for no bound."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def visible(
    T: int,
    query_BQ: Int[Array, "B Q"] | None = None,
    segment_start_BT: Int[Array, "B T"] | None = None,
    prefix_tokens: int = 0,
    end_BT: Int[Array, "b T"] | None = None,
) -> Bool[Array, "b q T"]:
    """Return which tokens of its row each query sees: none after itself, none of other segments.

    The mask of padding tokens is arbitrary; their outputs are never read.

    Args:
        query_BQ: indices of the queries in their rows; None for every token.
        segment_start_BT: index of the first token of each token's sentence, in packed rows; None
            where every row holds one sentence.
        prefix_tokens: tokens at the beginning of every packed row that all its sentences see too.
        end_BT: index behind each token's sentence; then tokens after the query are seen up to it.
    """
    token_T = jnp.arange(T)
    index_BQ = token_T[None, :] if query_BQ is None else query_BQ
    if end_BT is None:
        mask_BQT = token_T[None, None, :] <= index_BQ[:, :, None]
    else:
        end_BQ = end_BT if query_BQ is None else jnp.take_along_axis(end_BT, query_BQ, axis=1)
        mask_BQT = token_T[None, None, :] < end_BQ[:, :, None]
    if segment_start_BT is None:
        return mask_BQT
    start_BQ = segment_start_BT
    if query_BQ is not None:
        start_BQ = jnp.take_along_axis(segment_start_BT, query_BQ, axis=1)
    own_BQT = token_T[None, None, :] >= start_BQ[:, :, None]
    return mask_BQT & (own_BQT | (token_T < prefix_tokens))


@jax.named_scope("pool")
def take_tokens(x: jax.Array, index_BQ: Int[Array, "B Q"]) -> jax.Array:
    """Take tokens of every row out of `[B, T, ...]`."""
    index = index_BQ.reshape(index_BQ.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """The surroundings of a block.

    Attributes:
        mask_BQT: tokens of its row that each query sees, windows not counted; None in rows of more
            than LONG tokens, where attention computes it block by block.
        position_BT: position of every token; None where no text is longer than a window.
        ropes: rope tables of every token's position; in a layer, its own one.
        query_BQ: indices of the queries in their rows; None where every token is a query.
        segment_start_BT: index of the first token of each token's sentence, in packed rows.
        prefix_mask_C: tokens of a padded cached prefix that are real; None where all are.
        prefix_tokens: tokens of the shared prefix at the beginning of every packed row.
        end_BT: index behind each token's sentence where attention is bidirectional.
        window: of this layer.
        token_keys, query_keys: dropout keys of every token, and of the queries, in this layer.
        tape: what the layer saves for its backward pass.
        tap: what a caller changes and reads inside the layer's attention.
    """

    # A pytree's leaves may be anything while JAX traces it.
    mask_BQT: Any
    position_BT: Any = None
    ropes: tuple = ()
    query_BQ: Any = None
    segment_start_BT: Any = None
    prefix_mask_C: Any = None
    end_BT: Any = None
    window: Any = None
    token_keys: Any = None
    query_keys: Any = None
    prefix_tokens: int = dataclasses.field(default=0, metadata={"static": True})
    tape: Tape = dataclasses.field(default=NONE, metadata={"static": True})
    tap: Tap = dataclasses.field(default=NO_TAP, metadata={"static": True})

    def of_queries(self, query_BQ: Int[Array, "B Q"]) -> AttentionContext:
        """Return the same rows with these queries instead of every token."""
        if self.mask_BQT is None:
            return dataclasses.replace(self, query_BQ=query_BQ)
        mask_BQT = self._visible(self.mask_BQT.shape[-1], query_BQ)
        return dataclasses.replace(self, mask_BQT=mask_BQT, query_BQ=query_BQ)

    def _visible(self, T: int, query_BQ: Any) -> Bool[Array, "b q T"]:
        starts = self.segment_start_BT
        return visible(T, query_BQ, starts, self.prefix_tokens, self.end_BT)

    def of_layer(
        self, info: LayerInfo, keys: dropout.Keys | None = None, tape: Tape = NONE
    ) -> AttentionContext:
        """Return what one layer sees.

        Args:
            keys: dropout keys of every token; None switches dropout off.
        """
        keys = keys and dropout.fold_keys(keys, info.index)
        query_keys = jax.tree.map(self.queries, dropout.fold_keys(keys, dropout.QUERIES))
        return dataclasses.replace(
            self,
            ropes=self._ropes_of(info.rope),
            window=None if self.position_BT is None else info.window,
            token_keys=keys,
            query_keys=query_keys,
            tape=tape,
        )

    def _ropes_of(self, number: Any) -> tuple[Rope, ...]:
        if number is None:
            return self.ropes
        if isinstance(number, int):
            return (self.ropes[number],)
        each = (jnp.broadcast_arrays(*parts) for parts in zip(*self.ropes, strict=True))
        cos, sin = (jnp.stack(parts)[number] for parts in each)
        return ((cos, sin),)

    @property
    def rope(self) -> Rope | None:
        """Cosines and sines of every token's position in this layer; None without rope."""
        return self.ropes[0] if self.ropes else None

    @property
    def query_rope(self) -> Rope | None:
        """Cosines and sines of the queries' positions."""
        if self.rope is None or self.query_BQ is None:
            return self.rope
        rows = len(self.query_BQ)
        cos, sin = (self.queries(jnp.broadcast_to(a, (rows, *a.shape[1:]))) for a in self.rope)
        return cos, sin

    def queries(self, x: jax.Array) -> jax.Array:
        """Take the rows' query tokens out of `[B, T, ...]`."""
        return x if self.query_BQ is None else take_tokens(x, self.query_BQ)

    def query_positions(self) -> Int[Array, "b q"]:
        """Return the positions of the queries."""
        if self.query_BQ is None:
            return self.position_BT
        rows = (len(self.query_BQ), self.position_BT.shape[1])
        return self.queries(jnp.broadcast_to(self.position_BT, rows))

    def row_mask(self, T: int) -> Bool[Array, "b q T"]:
        """Return which of its row's T tokens each query sees in this layer."""
        mask_BQT = self._visible(T, self.query_BQ) if self.mask_BQT is None else self.mask_BQT
        if self.window is None:
            return mask_BQT
        distance_BQT = self.query_positions()[:, :, None] - self.position_BT[:, None, :]
        return mask_BQT & (jnp.abs(distance_BQT) < self.window)

    def prefix_mask(self, C: int) -> Bool[Array, "..."] | None:
        """Return which of C cached prefix tokens each query sees; None where it sees all."""
        if self.window is None:
            return self.prefix_mask_C
        near_BQC = self.query_positions()[:, :, None] - jnp.arange(C) < self.window
        near_BQC = near_BQC[:, None, None]  # scores have two axes of heads in between
        return near_BQC if self.prefix_mask_C is None else near_BQC & self.prefix_mask_C

    def token_key(self, site: int) -> dropout.Keys | None:
        """Return the dropout keys of every token at one site of the layer."""
        return dropout.fold_keys(self.token_keys, site)

    def query_key(self, site: int) -> dropout.Keys | None:
        """Return the dropout keys of the queries at one site of the layer."""
        return dropout.fold_keys(self.query_keys, site)
