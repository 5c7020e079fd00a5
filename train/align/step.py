"""One step of alignment: log-probabilities of answers with and without the adapter, update."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import dropout
from train.align.collate import AlignBatch
from train.align.log_probs import answer_log_probs, with_reference
from train.gradcache import in_chunks
from train.step import TrainStep, gathered_factors


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AlignStep(TrainStep):
    """A step whose loss takes log-probabilities, policy and reference, `[B, 2]` each.

    What is frozen is a pair: the frozen weights, and the LM head or None where it is the word
    embedding.

    Attributes:
        softcap: bound of the LM head's logits; None for none.
    """

    softcap: float | None = None

    def loss(
        self,
        trainable: PyTree,
        frozen: tuple[PyTree, jax.Array | None],
        batch: AlignBatch,  # type: ignore[override]
        prefix_C: Any,
        key: Key[Array, ""] | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of a batch as a function of the trainable weights, and other metrics."""
        keys = None
        if key is not None:
            assert batch.rows.start_BT is not None  # as they are laid out
            position_BT = jnp.arange(batch.sentence_BT.shape[1]) - batch.rows.start_BT
            keys = dropout.token_keys(key, batch.sentence_BT, position_BT)
        both: Any = with_reference(self.log_probs, trainable, (frozen, batch, keys))
        policy_B2, reference_B2 = (log_p_B.reshape(-1, 2) for log_p_B in both)
        with jax.named_scope("loss"):
            loss, others = self.loss_function(policy_B2, reference_B2)
        finite_B = jnp.isfinite(policy_B2 + reference_B2).all(axis=1)
        finite_B = jnp.empty_like(finite_B).at[batch.number_n].set(finite_B)
        return loss, {**others, "finite_B": finite_B}

    def log_probs(
        self, trainable: PyTree, frozen: tuple, batch: AlignBatch, keys: dropout.Keys | None
    ) -> Float[Array, "B"]:
        """Return the log-probability of every row's answer."""
        weights, head_VD = frozen
        model: Decoder = nnx.merge(self.graph, trainable, weights)
        dtype = model.dtype if self.chunks == 1 else jnp.float32
        model = nnx.merge(self.graph, gathered_factors(trainable, dtype), weights)
        head_VD = model.word_embedding if head_VD is None else head_VD
        run = partial(model, remat=self.remat)

        def answers(rows: Any, cache: Any, keys: Any) -> Float[Array, "B"]:
            rows, target_BS = rows
            return answer_log_probs(run(rows, cache, keys), head_VD, target_BS, self.softcap)

        return in_chunks(answers, self.chunks)((batch.rows, batch.target_BS), None, keys)
