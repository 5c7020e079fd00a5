"""Steps of a method inside attention: heads subtracted, outputs collected, an extra slot.

Each step is a pytree whose leaves are its numbers, so that a sweep over blocks and scales compiles
nothing again. `StepTap` applies them in one layer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompteol_jax.errors import UserError
from prompteol_jax.ops.context import LONG, AttentionContext, take_tokens
from prompteol_jax.ops.scan import Saved
from prompteol_jax.ops.tap import Tap

_SMALL: Final = 1e-7  # keeps a difference of zero from dividing by zero, as in the released code


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SubtractHeads:
    """Contrastive prompting; `methods.record.Subtract` has the formulas.

    Attributes:
        kind: one of `record.SUBTRACTIONS`; another one compiles another program.
        block, scale: numbers.
        auxiliary_BSNH: heads' outputs of the auxiliary prompts' last tokens in that block; None
            until they are computed, and for `self_scaled`.
    """

    kind: str = dataclasses.field(metadata={"static": True})
    block: Any
    scale: Any
    auxiliary_BSNH: Any = None

    def __call__(self, v_BSNH: Float[Array, "B S N H"]) -> Float[Array, "B S N H"]:
        """Return what takes the place of v, float32."""
        v_BSNH = v_BSNH.astype(jnp.float32)
        if self.kind == "self_scaled":
            return self.scale * v_BSNH
        d_BSNH = v_BSNH - self.auxiliary_BSNH.astype(jnp.float32)
        if self.kind == "ns":
            return self.scale * d_BSNH
        over = -1 if self.kind == "sub_head_norm" else (-2, -1)
        ratio = _norm(v_BSNH, over) / (_norm(d_BSNH, over) + _SMALL)
        return d_BSNH * ratio * (self.scale if self.kind == "scaled_norm" else 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CollectOutputs:
    """The vector is a weighted sum of the last token's attention outputs, in place of a state.

    Attributes:
        weight_L: weight of each block.
    """

    weight_L: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LastTokenSlot:
    """All tokens of a text also attend to the last one's key and value.

    Attributes:
        on_L: the blocks where they do, as booleans.
    """

    on_L: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """What a method does inside attention; None for nothing."""

    subtract: SubtractHeads | None = None
    collect: CollectOutputs | None = None
    slot: LastTokenSlot | None = None

    @property
    def none(self) -> bool:
        """Whether there are no steps."""
        return self.subtract is self.collect is self.slot is None

    @property
    def names_of_all(self) -> list[str]:
        """Names of the steps that change tokens of the prefix, which no text then shares."""
        scaled = self.subtract is not None and self.subtract.kind == "self_scaled"
        found = {"scaled heads": scaled, "extra slot": self.slot is not None}
        return [name for name, is_there in found.items() if is_there]

    @property
    def reads_all(self) -> bool:
        """Whether every prompt is computed whole."""
        return bool(self.names_of_all)


NOTHING: Final = Steps()


class StepTap(Tap):
    """The steps of one layer.

    Attributes:
        found: the last tokens' attention outputs, weighted, float32, `[B, S, D]`; None where
            nothing is collected.
    """

    def __init__(self, steps: Steps, layer: Int[Array, ""] | int, last_BS: Int[Array, "B S"]):
        self.steps, self.layer, self.last_BS = steps, layer, last_BS
        self.found = None

    def keys_values(
        self, k: Saved, v: Saved, context: AttentionContext
    ) -> tuple[Saved, Saved, AttentionContext]:
        """Return keys and values with the last tokens' once more, which other queries see too."""
        if self.steps.slot is None:
            return k, v, context
        wider = with_last_tokens(context, self.last_BS, self.steps.slot.on_L[self.layer])
        pairs = (jnp.concatenate([x.value, take_tokens(x.value, self.last_BS)], 1) for x in (k, v))
        k, v = map(Saved, pairs)
        return k, v, wider

    def heads(self, y_BQNH: jax.Array, context: AttentionContext) -> jax.Array:
        """Return the heads' outputs, changed in one block."""
        subtract = self.steps.subtract
        if subtract is None:
            return y_BQNH
        is_here = self.layer == subtract.block
        if subtract.kind == "self_scaled":
            return jnp.where(is_here, subtract(y_BQNH).astype(y_BQNH.dtype), y_BQNH)
        last_BSNH = self._last(y_BQNH, context)
        changed_BSNH = jnp.where(is_here, subtract(last_BSNH).astype(y_BQNH.dtype), last_BSNH)
        if context.query_BQ is not None:
            return changed_BSNH
        return put_tokens(y_BQNH, self.last_BS, changed_BSNH)

    def output(self, y_BQD: jax.Array, context: AttentionContext) -> None:
        """Collect the last tokens' outputs."""
        if self.steps.collect is not None:
            weight = self.steps.collect.weight_L[self.layer]
            self.found = weight * self._last(y_BQD, context).astype(jnp.float32)

    def _last(self, y: jax.Array, context: AttentionContext) -> jax.Array:
        """Return the values of the last tokens, which may be all the queries there are."""
        return y if context.query_BQ is not None else take_tokens(y, self.last_BS)


class HeadsTap(Tap):
    """Reads the heads' outputs, for the auxiliary prompt; its queries are the last tokens."""

    def heads(self, y_BQNH: jax.Array, context: AttentionContext) -> jax.Array:
        """Keep the heads' outputs."""
        self.found = y_BQNH
        return y_BQNH


def put_tokens(
    x: jax.Array, index_BS: Int[Array, "B S"], values: Float[Array, "B S *w"]
) -> jax.Array:
    """Return x `[B, T, ...]` with tokens replaced.

    A packed row may have fewer than S sentences; the positions of the others are 0, as is that of a
    first sentence of one token, and are left alone.
    """
    is_empty = (index_BS == 0) & (jnp.arange(index_BS.shape[1]) > 0)
    index_BS = jnp.where(is_empty, x.shape[1], index_BS)
    return x.at[jnp.arange(len(x))[:, None], index_BS].set(values, mode="drop")


def with_last_tokens(
    context: AttentionContext, last_BS: Int[Array, "B S"], is_on: Any
) -> AttentionContext:
    """Return a layer's context whose keys end in the last tokens of the row, which all others see.

    Args:
        is_on: the extra keys are visible.
    Raises: UserError for rows whose scores are computed block by block.
    """
    if context.mask_BQT is None:
        raise UserError(
            f"an extra slot takes prompts of at most {LONG} tokens; give max_tokens {LONG}, or "
            "leave longer texts out"
        )
    B, S = last_BS.shape
    T = context.mask_BQT.shape[-1]
    query_BQ = context.query_BQ
    if query_BQ is None:
        query_BQ = jnp.broadcast_to(jnp.arange(T), (B, T))
    own_BQS = jnp.ones((B, query_BQ.shape[1], S), bool)
    if context.segment_start_BT is not None:
        start_BQ = jnp.take_along_axis(context.segment_start_BT, query_BQ, axis=1)
        start_BS = jnp.take_along_axis(context.segment_start_BT, last_BS, axis=1)
        own_BQS = start_BQ[:, :, None] == start_BS[:, None]
    mask_BQT = context.row_mask(T)  # a window does not hide the extra keys
    mask_BQT = jnp.broadcast_to(mask_BQT, (B, *mask_BQT.shape[1:]))

    def longer(x_BT: jax.Array) -> jax.Array:
        x_BT = jnp.broadcast_to(x_BT, (B, *x_BT.shape[1:]))
        return jnp.concatenate([x_BT, take_tokens(x_BT, last_BS)], axis=1)

    return dataclasses.replace(
        context,
        mask_BQT=jnp.concatenate([mask_BQT, own_BQS & is_on], axis=-1),
        query_BQ=query_BQ,
        ropes=tuple((longer(cos), longer(sin)) for cos, sin in context.ropes),
        position_BT=None,
        window=None,
        segment_start_BT=None,
    )


def block_range(first: int | float, end: int | float | None, depth: int) -> tuple[int, int]:
    """Return the blocks of a record's bounds, as (first, end) in a model of so many blocks.

    A fraction of the depth is rounded to the nearest block; a negative number counts from the end.
    """

    def block(bound: int | float) -> int:
        if isinstance(bound, float):
            return round(bound * depth)
        return bound + depth if bound < 0 else bound

    return block(first), depth if end is None else block(end)


def weights(first: int, end: int, depth: int, reduce: str) -> np.ndarray:
    """Return the weight of each block in a sum, or a mean, over blocks first <= i < end."""
    chosen = (np.arange(depth) >= first) & (np.arange(depth) < end)
    return (chosen / (chosen.sum() if reduce == "mean" else 1)).astype(np.float32)


def _norm(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True))
