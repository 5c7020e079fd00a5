"""The LM head: which tokens follow a prompt with a given vector. Encoding never runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from prompteol_jax import distributed
from prompteol_jax.errors import UserError
from prompteol_jax.methods.pooling import LAST
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import einsum
from prompteol_jax.ops.context import soft_cap

_ROWS: Final = 256  # vectors that are ranked together


def check_reads(*, inner: bool, pooling: str, one: bool = True) -> None:
    """Refuse states that the head was not trained to read: an inner layer's, a pooled mean.

    Args:
        one: the state is that after one prompt, as it is.
    Raises: UserError that says which state it reads.
    """
    if not one:
        raise UserError(
            "words need the state after one prompt: give a method without a mean over prompts, "
            "collected outputs or post stages"
        )
    if inner or pooling != LAST.name:
        raise UserError("words need the last layer and the last token: --layer -1, --pooling last")


@dataclass(frozen=True, eq=False)
class Head:
    """The head of a model.

    Attributes:
        mesh: where it computes.
        vocab_size: number of tokens that it ranks.
        softcap: bound c of the logits, c * tanh(logit / c); None for no bound.
        read: function that returns the head, or None where it is the word embedding; called once,
            when the head is first needed.
    """

    mesh: Mesh
    vocab_size: int
    read: Callable[[], Float[Array, "V D"] | None]
    softcap: float | None = None

    def check(self, k: int) -> None:
        """Refuse a number of tokens that the head does not rank.

        Raises: UserError that says what is allowed.
        """
        if not 1 <= k <= self.vocab_size:
            raise UserError(f"k {k} is not allowed: the model ranks 1 to {self.vocab_size} tokens")

    def top(
        self, decoder: Decoder, z_nD: Float[np.ndarray, "n D"], k: int
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Return ids and probabilities of the k most likely next tokens after final vectors."""
        head_VD = decoder.word_embedding if self._own is None else self._own
        ids, p = [np.zeros((0, k), np.int32)], [np.zeros((0, k), np.float32)]
        for start in range(0, len(z_nD), _ROWS):
            z_BD = jnp.asarray(z_nD[start : start + _ROWS]).astype(head_VD.dtype)
            with jax.set_mesh(self.mesh):
                logits_BV = einsum.dot("BD,VD->BV", z_BD, head_VD)
                bounded_BV = soft_cap(logits_BV, self.softcap)
                p_Bk, ids_Bk = jax.lax.top_k(jax.nn.softmax(bounded_BV), k)
            ids.append(np.asarray(ids_Bk))
            p.append(np.asarray(p_Bk))
        return np.concatenate(ids), np.concatenate(p)

    def to_host(self, decoder: Decoder) -> Float[np.ndarray, "V D"]:
        """Return the head as float32 on the host; the word embedding where they are one."""
        head_VD = decoder.word_embedding if self._own is None else self._own
        return distributed.to_host(head_VD.astype(jnp.float32))

    @cached_property
    def _own(self) -> jax.Array | None:
        return self.read()
