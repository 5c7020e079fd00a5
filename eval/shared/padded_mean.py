"""The original's mean pooling, which divides by the padded length of the batch.

Its `--avg` sums the last layer's states over a prompt's own tokens, BOS and template included, and
divides by the longest prompt of the batch. A vector's length then depends on its company, its
direction does not: cosines are those of the true mean, a classifier's inputs are not.
Source: kongds/scaling_sentemb, evaluation.py, `(last_layer * attention_mask).mean(1)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from prompteol_jax import Embedder
from prompteol_jax.errors import UserError

BATCH: Final = 16  # SentEval's, as that script sets it for test scores


def encode_padded_mean(
    embedder: Embedder, texts: Sequence[str], batch: int = BATCH, progress: bool | None = None
) -> Float[np.ndarray, "n D"]:
    """Encode texts in the order given, cut into batches of which each has its own padded length.

    Args:
        texts: All texts that the original encodes, duplicates included, in its order; SentEval
            sorts by the number of words, so that a batch holds texts of about one length.
    Raises: UserError for an embedder that does not pool the mean.
    """
    if embedder.pooling != "mean":
        raise UserError("the padded mean is a mean: load the model with --pooling mean")
    means_nD = embedder.encode(texts, progress=progress, check_finite=False)
    prompts = embedder.prompt(texts)
    shared = np.where(prompts.shared, len(embedder.prompt.prefix_C), 0)
    tokens_n = shared + [len(ids) for ids in prompts.ids]
    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        means_nD[part] *= (tokens_n[part] / tokens_n[part].max())[:, None].astype(np.float32)
    return means_nD
