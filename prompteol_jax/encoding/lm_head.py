"""The language-model head: which tokens a vector goes on with. Encoding never runs it."""

from __future__ import annotations

import functools
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from prompteol_jax.errors import UserError
from prompteol_jax.lora import peft
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import einsum
from prompteol_jax.pretrained.load import Pretrained

_ROWS: Final = 256  # vectors that are ranked at once


def check_reads(*, inner: bool, pooling: str) -> None:
    """Refuse states that the head was not trained to read: an inner layer's, a pooled mean."""
    if inner or pooling != "last":
        raise UserError("words need the last layer and the last token: --layer -1, --pooling last")


class Head:
    """The head of a model; read when it is first asked, unless it is the embedding itself."""

    def __init__(self, source: Pretrained):
        self._source = source
        self._untied: jax.Array | None = None

    def top(
        self, decoder: Decoder, z_nD: Float[np.ndarray, "n D"], k: int
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Ids and probabilities of the k most likely next tokens behind final vectors."""
        head, found = self._weights(decoder), []
        for start in range(0, len(z_nD), _ROWS):
            z_BD = jnp.asarray(z_nD[start : start + _ROWS]).astype(head.dtype)
            with jax.set_mesh(self._source.mesh):
                logits_BV = einsum.dot("BD,VD->BV", z_BD, head)
                p_Bk, ids_Bk = jax.lax.top_k(jax.nn.softmax(logits_BV), k)
            found.append((np.asarray(ids_Bk), np.asarray(p_Bk)))
        ids, p = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(p)

    def _weights(self, decoder: Decoder) -> jax.Array:
        source = self._source
        if self._is_embedding:
            return decoder.stem.tokens[...]
        if self._untied is None:
            self._untied = build.read_head(
                source.folder, source.config, source.mesh, dtype=decoder.dtype
            )
        return self._untied

    @functools.cached_property
    def _is_embedding(self) -> bool:
        """Whether the head is the word embedding; raises UserError where files disagree on it."""
        source = self._source
        if source.adapter is not None and peft.adapts_head(source.adapter):
            raise UserError(f"{source.adapter} adapts the LM head, which words do not support")
        if source.folder is not None:
            build.check_tied_head(source.folder, source.config)
        return source.config.tied or source.folder is None
