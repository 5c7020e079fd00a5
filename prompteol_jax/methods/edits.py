"""Edits: interventions between two blocks of the decoder.

An edit is a function of a state and a layer. It is a pytree whose leaves are its numbers
(`jax.tree_util.register_dataclass`), so that a sweep over them compiles nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int


class Edit:
    """An edit; derived classes are registered as pytrees.

    Attributes:
        tokens: tokens whose states it changes or reads: a prompt's `own` ones, after the shared
            prefix, which is then still computed once; or `all`, each prompt being computed whole.
    """

    tokens: ClassVar[Literal["own", "all"]] = "all"

    def __call__(
        self, x_BTD: Float[Array, "B T D"], layer: Int[Array, ""], last_B: Int[Array, "B"]
    ) -> Float[Array, "B T D"]:
        """Return the state that the block `layer` gets in place of x_BTD.

        Args:
            x_BTD: output of the block before it, `hidden_states[layer]`; T tokens of one prompt a
                row, the shared prefix left out where it is computed once.
            layer: number of the block, from 0.
            last_B: positions of the prompts' last tokens; tokens after them are padding.
        """
        raise NotImplementedError


def apply_edits(
    edits: Sequence[Edit], x_BTD: jax.Array, layer: jax.Array, last_BS: jax.Array
) -> jax.Array:
    """Return the state after all edits, in their order, in the dtype of x_BTD."""
    for edit in edits:
        x_BTD = edit(x_BTD, layer, last_BS[:, 0]).astype(x_BTD.dtype)
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
