"""Poolings: how the states of a prompt's tokens become one vector.

A pooling states which tokens and which layers it reads. The encoder keeps what stays exact: the
shared prefix where no token of it is read, and the last block for one token where only the last
token is read. What it gave up is part of `Embedder.plan`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prompteol_jax.errors import UserError

if TYPE_CHECKING:
    from prompteol_jax.text.prompt import Prompt

Tokens = Literal["last", "own", "all"]
Layers = Literal["last", "all"]


@dataclass(frozen=True)
class Pooling:
    """A pooling; this base class takes the last token's state. Compared and hashed by its fields.

    Attributes:
        name: name in `POOLINGS` and in result files.
        tokens: tokens that are read: the `last` one of the prompt; its `own` ones, after the
            shared prefix; or `all`.
        layers: layers that are read: the `last` one, after its norm; or `all`, the states after
            inner blocks raw.
    """

    name: ClassVar[str] = "last"
    tokens: ClassVar[Tokens] = "last"
    layers: ClassVar[Layers] = "last"

    def describe(self) -> str:
        """Return what tells it from others in a result file: its name, or its class and fields."""
        return self.name if POOLINGS.get(self.name) == self else repr(self)

    def span(self, ids_T: Int[np.ndarray, "T"], prompt: Prompt) -> tuple[int, int]:
        """Return the positions that are read, as (first, end) in the ids of a whole prompt."""
        return len(ids_T) - 1, len(ids_T)

    def pool(
        self, x_BTD: Float[Array, "B T D"], span_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B D"]:
        """Return one vector for each row's span, float32. Not called where `tokens` is `last`."""
        raise NotImplementedError

    def join(
        self, inner: Sequence[Float[Array, "B S D"]], final_BSE: Float[Array, "B S E"]
    ) -> Float[Array, "B S W"]:
        """Return the vector of all layers; `inner` holds none where `layers` is `last`."""
        return final_BSE

    def width(self, *, inner: int, final: int, depth: int) -> int:
        """Return the number of features of a vector.

        Args:
            inner: width of the states after inner blocks.
            final: width of the last layer's output.
            depth: number of blocks.
        """
        return final


@dataclass(frozen=True)
class Mean(Pooling):
    """Mean over all tokens of the prompt, template and BOS included."""

    name: ClassVar[str] = "mean"
    tokens: ClassVar[Tokens] = "all"

    def span(self, ids_T: Int[np.ndarray, "T"], prompt: Prompt) -> tuple[int, int]:
        """Return all positions."""
        return 0, len(ids_T)

    def pool(
        self, x_BTD: Float[Array, "B T D"], span_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B D"]:
        """Return the mean over each row's span."""
        summed_BD = jnp.where(span_BT[..., None], x_BTD, 0).sum(1)
        return summed_BD / span_BT.sum(1, keepdims=True)


@dataclass(frozen=True)
class SecondMean(Mean):
    """Mean over the second copy of the text and what follows it, of a prompt in pieces: Echo."""

    name: ClassVar[str] = "second-mean"
    tokens: ClassVar[Tokens] = "own"

    def span(self, ids_T: Int[np.ndarray, "T"], prompt: Prompt) -> tuple[int, int]:
        """Return the positions from the second copy on."""
        return prompt.second_copy(len(ids_T)), len(ids_T)


@dataclass(frozen=True)
class MeanLast(Mean):
    """Half the mean over all tokens of the prompt plus half the last token's state."""

    name: ClassVar[str] = "mean-last"

    def pool(
        self, x_BTD: Float[Array, "B T D"], span_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B D"]:
        """Return the mean of each row's span, averaged with its last state."""
        last_B1 = span_BT.shape[1] - 1 - jnp.argmax(span_BT[:, ::-1], axis=1, keepdims=True)
        last_BD = jnp.take_along_axis(x_BTD, last_B1[..., None], axis=1)[:, 0]
        return (super().pool(x_BTD, span_BT) + last_BD) / 2


@dataclass(frozen=True)
class EveryLayer(Pooling):
    """The last token's state after every block, concatenated: `Embedder.encode_layers`."""

    name: ClassVar[str] = "every-layer"
    layers: ClassVar[Layers] = "all"

    def join(
        self, inner: Sequence[Float[Array, "B S D"]], final_BSE: Float[Array, "B S E"]
    ) -> Float[Array, "B S W"]:
        """Return all states in the order of the layers."""
        return jnp.concatenate([*inner, final_BSE], axis=-1)

    def width(self, *, inner: int, final: int, depth: int) -> int:
        """Return the width of all states together."""
        return inner * (depth - 1) + final


LAST: Final = Pooling()
POOLINGS: Final = MappingProxyType(
    {pooling.name: pooling for pooling in (LAST, Mean(), SecondMean(), MeanLast())}
)


def find_pooling(name: str | Pooling) -> Pooling:
    """Return a pooling by its name in POOLINGS; a Pooling is returned as it is.

    Raises: UserError for an unknown name, with the nearest one.
    """
    if isinstance(name, Pooling):
        return name
    if name in POOLINGS:
        return POOLINGS[name]
    near = difflib.get_close_matches(str(name).lower(), POOLINGS, n=1)
    raise UserError(
        f"unknown pooling {name!r}{f'; nearest: {near[0]}' if near else ''}. "
        f"Allowed: {', '.join(POOLINGS)}, or an object of a class derived from Pooling"
    )


def read_states(
    pooling: Pooling,
    x_BTD: Float[Array, "B T D"],
    first_BS: Int[Array, "B S"] | None,
    last_BS: Int[Array, "B S"],
) -> Float[Array, "B S D"]:
    """Return what a pooling takes of one layer's states, float32.

    Args:
        first_BS: first positions of the spans; None where `pooling.tokens` is `last`.
        last_BS: last positions of the spans.
    """
    x_BTD = x_BTD.astype(jnp.float32)
    if pooling.tokens == "last":
        return jnp.take_along_axis(x_BTD, last_BS[..., None], axis=1)
    assert first_BS is not None  # a span has a first position
    at_T = jnp.arange(x_BTD.shape[1])
    return pooling.pool(x_BTD, (first_BS <= at_T) & (at_T <= last_BS))[:, None]
