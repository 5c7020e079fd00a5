"""The model behind a server: prompts, batches of fixed shape, and the name of its bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from prompteol_jax import distributed
from prompteol_jax.embedder import Embedder
from prompteol_jax.encoding.batching import Batch, Sentence, fill_batch
from prompteol_jax.encoding.pipeline import refuse_not_finite
from prompteol_jax.serve.api import ApiError
from prompteol_jax.serve.batcher import Bucket


@dataclass(frozen=True)
class Prompts:
    """The prompts of one request.

    Attributes:
        sentences: in the form that batches are filled with.
        tokens: ids of all prompts, the template included.
    """

    sentences: list[Sentence]
    truncated: Bool[np.ndarray, "n"]
    tokens: int


class Engine:
    """An embedder as the batcher's device. One thread launches, another fetches; any tokenizes."""

    def __init__(self, embedder: Embedder):
        self.embedder = embedder
        self.pipeline = embedder.pipeline
        buckets = self.pipeline.buckets(self.pipeline.tokens)
        assert buckets is not None  # only the plan `fitted` waits for texts; serve takes `fixed`
        self.buckets = buckets
        self.shapes: list[Bucket] = []
        self.width = embedder.width
        self.bits = _bits(embedder, str(self.buckets))

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """Put texts into the template and tokenize them."""
        prompt = self.embedder.prompt
        found = prompt(texts)
        pairs = enumerate(zip(found.ids, found.shared, strict=True))
        sentences = [self.pipeline.sentence(n, ids, bool(shared)) for n, (ids, shared) in pairs]
        prefix = len(prompt.prefix_C) * int(found.shared.sum())
        return Prompts(sentences, found.truncated, sum(map(len, found.ids)) + prefix)

    def refuse_long(self, prompts: Prompts) -> None:
        """Refuse texts that would be cut.

        Raises: ApiError 400 naming the first one.
        """
        long = np.flatnonzero(prompts.truncated)
        if len(long):
            raise ApiError(
                400,
                f"input[{long[0]}] has more than the {self.embedder.max_tokens} tokens that a "
                "prompt may have, template included; send less or start with --truncate end",
                param="input",
            )

    def refuse_not_finite(self, z_nD: Float[np.ndarray, "n D"]) -> None:
        """Refuse vectors that are not finite, by number: an error never shows a text."""
        refuse_not_finite(z_nD, [f"input[{n}]" for n in range(len(z_nD))])

    def bucket(self, item: Sentence) -> Bucket:
        """Return the bucket of a prompt: its number, and if it continues the shared prefix."""
        return self.buckets.find(len(item.ids), item.shared), item.shared

    def rows(self, bucket: Bucket) -> int:
        """Return the rows of a bucket's batches."""
        return self.buckets.rows[bucket[0]]

    def launch(self, bucket: Bucket, items: Sequence[Sentence]) -> tuple[Batch, jax.Array]:
        """Start computing prompts of one bucket; their vectors come in this order."""
        batch = fill_batch(self.buckets, bucket[0], items)
        with jax.set_mesh(self.embedder.mesh):
            return batch, self.pipeline.launch(batch)

    def fetch(self, launched: tuple[Batch, jax.Array]) -> Float[np.ndarray, "n D"]:
        """Wait for a batch and return the vectors of its prompts."""
        batch, z = launched
        z_BD = distributed.to_host(z)
        return z_BD.reshape(-1, z_BD.shape[-1])[batch.positions]

    def warm(self) -> None:
        """Compile and run every shape once, so that no request waits for the compiler."""
        lengths = self.buckets.lengths
        whole = {self.buckets.find(n, shared=False) for n in (1, *lengths)}
        kinds = [(n, True) for n in range(len(lengths))]
        for number, shared in [*kinds, *((n, False) for n in sorted(whole))]:
            dummy = Sentence(0, np.zeros(lengths[number], np.int32), shared)
            self.fetch(self.launch((number, shared), [dummy]))
            self.shapes.append((number, shared))

    def words(self, z_nD: Float[np.ndarray, "n D"], k: int) -> list[list[dict[str, Any]]]:
        """Return the k most likely next tokens after each text's prompt."""
        self.embedder.check_words(k)
        ids_nk, p_nk = self.embedder.tokens_after(z_nD, k)
        decode = self.embedder.pretrained.tokenizer.decode
        return [
            [{"word": decode([int(i)]), "probability": float(q)} for i, q in zip(*row, strict=True)]
            for row in zip(ids_nk, p_nk, strict=True)
        ]


def _bits(embedder: Embedder, buckets: str) -> str:
    """Return 16 hex digits over everything that decides the bits of a vector."""
    device = jax.devices()[0]
    made = {
        **embedder.describe(),
        "mesh": dict(embedder.mesh.shape),
        "buckets": buckets,
        "device": device.device_kind,
        "jax": jax.__version__,
    }
    text = json.dumps(made, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
