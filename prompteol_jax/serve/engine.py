"""The model behind a server: prompts, batches of fixed shape, and the name of its bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import Bool, Float

from prompteol_jax import distributed
from prompteol_jax.embedder import Embedder
from prompteol_jax.encoding.batching import Batch, Sentence, fill_batch
from prompteol_jax.encoding.pipeline import refuse_not_finite
from prompteol_jax.errors import UserError
from prompteol_jax.serve.api import ApiError
from prompteol_jax.text.template import clean_sentence

Bucket = tuple[int, bool]  # its number, and whether its prompts continue the shared prefix
NEVER: Final = sys.maxsize  # batches to wait before a shape is compiled while requests wait


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

    def __init__(self, embedder: Embedder, *, batch_tokens: int | None = None, clean: bool = False):
        """Serve an embedder.

        Raises: UserError for a method of several vectors a text, whose mean no batch has.
        """
        if len(embedder.views.pipelines) > 1 or embedder.views.variants != (None,):
            name = embedder.method and embedder.method.name
            raise UserError(
                f"serve takes methods of one prompt, and {name} averages several vectors a text; "
                "encode with it instead"
            )
        self.embedder = embedder
        self.pipeline = embedder.pipeline
        if batch_tokens is not None:
            self.pipeline = dataclasses.replace(embedder.pipeline, batch_tokens=batch_tokens)
        self.clean = clean
        buckets = self.pipeline.buckets(self.pipeline.tokens)
        assert buckets is not None  # only the plan `fitted` waits for texts; serve takes `fixed`
        self.buckets = buckets
        self.shapes: list[Bucket] = []
        self.width = embedder.width
        self.bits = _bits(embedder, str(self.buckets), clean=clean)

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """Put texts into the template and tokenize them."""
        if self.clean:
            texts = [clean_sentence(text) for text in texts]
        found, auxiliary = self.pipeline.tokenize(texts)
        sentences = list(self.pipeline.sentences(found, auxiliary))
        prefix = len(self.pipeline.prompt.prefix_C) * int(found.shared.sum())
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
        return self.buckets.find(item.length, item.shared), item.shared

    def rows(self, bucket: Bucket) -> int:
        """Return the rows of a bucket's batches."""
        return self.buckets.rows[bucket[0]]

    def launch(self, bucket: Bucket, items: Sequence[Sentence]) -> tuple[Batch, jax.Array]:
        """Start computing prompts of one bucket; their vectors come in this order.

        Few prompts take a smaller batch, where `warm` has shown that it has the same bits.
        """
        batch = fill_batch(self.buckets, bucket[0], items)
        with jax.set_mesh(self.embedder.mesh):
            batch = self.pipeline.shrink(batch, patience=NEVER)
            return batch, self.pipeline.launch(batch)

    def fetch(self, launched: tuple[Batch, jax.Array]) -> Float[np.ndarray, "n D"]:
        """Wait for a batch and return the vectors of its prompts."""
        batch, z = launched
        z_BD = distributed.to_host(z)
        z_nD = z_BD.reshape(-1, z_BD.shape[-1])[batch.positions]
        post = self.embedder.views.post
        return post(z_nD) if post else z_nD

    def warm(self) -> None:
        """Compile and run every shape once, so that no request waits for the compiler."""
        lengths = self.buckets.lengths
        whole = {self.buckets.find(n, shared=False) for n in (1, *lengths)}
        kinds = [(n, True) for n in range(len(lengths))]
        for number, shared in [*kinds, *((n, False) for n in sorted(whole))]:
            dummy = self._dummy(lengths[number], shared)
            batch = fill_batch(self.buckets, number, [dummy])
            with jax.set_mesh(self.embedder.mesh):
                self.fetch((batch, self.pipeline.launch(batch)))
                self.shapes += [(number, shared)] * (1 + self.pipeline.prove(batch))

    def answers_fast(self) -> bool:
        """Say whether a text alone takes a small batch, shown for the shortest prompts."""
        dummy = self._dummy(self.buckets.lengths[0], shared=True)
        batch = fill_batch(self.buckets, 0, [dummy])
        with jax.set_mesh(self.embedder.mesh):
            self.pipeline.prove(batch)
            return self.pipeline.shrink(batch, patience=NEVER) is not batch

    def _dummy(self, length: int, shared: bool) -> Sentence:
        """Return a prompt of so many ids, with an auxiliary one where the method has one."""
        ids = np.zeros(length, np.int32)
        return Sentence(0, ids, shared, 0, None if self.pipeline.auxiliary is None else ids)

    def words(self, z_nD: Float[np.ndarray, "n D"], k: int) -> list[list[dict[str, Any]]]:
        """Return the k most likely next tokens after each text's prompt."""
        self.embedder.check_words(k)
        ids_nk, p_nk = self.embedder.tokens_after(z_nD, k)
        decode = self.embedder.pretrained.tokenizer.decode
        return [
            [{"word": decode([int(i)]), "probability": float(q)} for i, q in zip(*row, strict=True)]
            for row in zip(ids_nk, p_nk, strict=True)
        ]


def _bits(embedder: Embedder, buckets: str, *, clean: bool) -> str:
    """Return 16 hex digits over everything that decides the bits of a vector."""
    device = jax.devices()[0]
    made = {
        **embedder.describe(),
        **({"clean": True} if clean else {}),
        "mesh": dict(embedder.mesh.shape),
        "buckets": buckets,
        "device": device.device_kind,
        "jax": jax.__version__,
    }
    text = json.dumps(made, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
