"""Edits: interventions between two blocks of the decoder.

An edit is a function of a state and a layer. It is a pytree whose leaves are its numbers
(`jax.tree_util.register_dataclass`), so that a sweep over them compiles nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prompteol_jax.methods.steps import put_tokens
from prompteol_jax.ops.context import take_tokens


class Edit:
    """An edit; derived classes are registered as pytrees.

    Attributes:
        tokens: tokens whose states it changes or reads: a prompt's `own` ones, after the shared
            prefix, which is then still computed once; or `all`, each prompt being computed whole.
        packs: whether it takes rows of several prompts.
    """

    tokens: ClassVar[Literal["own", "all"]] = "all"
    packs: ClassVar[bool] = False

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        layer: Int[Array, ""],
        first_BS: Int[Array, "B S"],
        last_BS: Int[Array, "B S"],
    ) -> Float[Array, "B T D"]:
        """Return the state that the block `layer` gets in place of x_BTD.

        Args:
            x_BTD: output of the block before it, `hidden_states[layer]`; T tokens of one prompt a
                row, the shared prefix left out where it is computed once.
            layer: number of the block, from 0.
            first_BS, last_BS: positions of the prompts' first and last tokens; S is 1 unless rows
                are packed, where a later slot with 0 in both holds no prompt.
        """
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenCopy(Edit):
    """Token prepending: a prompt's first own token gets the last one's state before some blocks.

    The first own token is the placeholder, since the shared prefix ends before it.

    Attributes:
        start, exit: before every block i with start <= i < exit.
        initial_D: state of the placeholder before block 0, where start is above 0.
    """

    start: Any
    exit: Any
    initial_D: Any
    tokens: ClassVar[Literal["own", "all"]] = "own"
    packs: ClassVar[bool] = True

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        layer: Int[Array, ""],
        first_BS: Int[Array, "B S"],
        last_BS: Int[Array, "B S"],
    ) -> Float[Array, "B T D"]:
        """Return the state with the placeholder's replaced."""
        last_BSD, own_BSD = take_tokens(x_BTD, last_BS), take_tokens(x_BTD, first_BS)
        is_copied = (self.start <= layer) & (layer < self.exit)
        initial_D = jnp.asarray(self.initial_D).astype(x_BTD.dtype)
        kept_BSD = jnp.where(layer == 0, initial_D, own_BSD)
        return put_tokens(x_BTD, first_BS, jnp.where(is_copied, last_BSD, kept_BSD))


def placeholder_state(seed: int, D: int) -> Float[np.ndarray, "D"]:
    """Return the state of a placeholder before block 0: standard normal, the same everywhere."""
    return np.random.Generator(np.random.Philox(seed)).standard_normal(D).astype(np.float32)


def apply_edits(
    edits: Sequence[Edit],
    x_BTD: jax.Array,
    layer: jax.Array,
    last_BS: jax.Array,
    start_BT: jax.Array | None = None,
) -> jax.Array:
    """Return the state after all edits, in their order, in the dtype of x_BTD.

    Args:
        start_BT: in packed rows, the index of the first token of each token's sentence.
    """
    first_BS = jnp.zeros_like(last_BS)
    if start_BT is not None:
        first_BS = jnp.take_along_axis(start_BT, last_BS, axis=1)
    for edit in edits:
        x_BTD = edit(x_BTD, layer, first_BS, last_BS).astype(x_BTD.dtype)
    return x_BTD


def describe_edits(edits: Sequence[Edit]) -> list[dict[str, str]]:
    """Return the class of each edit and a digest of its numbers, for a result file."""
    found = []
    for edit in edits:
        content = hashlib.sha256()
        for leaf in map(np.asarray, jax.tree.leaves(edit)):
            content.update(f"{leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes())
        found.append({"edit": type(edit).__name__, "sha256": content.hexdigest()})
    return found
