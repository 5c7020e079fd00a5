"""The model behind a server: prompts, batches of fixed shape, and the name of its bits."""

from __future__ import annotations

import hashlib
import itertools
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
from prompteol_jax.encoding.buckets import OVERHEAD
from prompteol_jax.encoding.pipeline import refuse_not_finite
from prompteol_jax.encoding.small_batches import agree
from prompteol_jax.serve.api import ApiError
from prompteol_jax.text.template import clean_sentence

# The prompt of the method, the length, and whether the ids continue the shared prefix.
Bucket = tuple[int, int, bool]
Item = tuple[int, Sentence]  # a text in one prompt of the method
_COMPARED: Final = 8  # prompts that two lengths are compared with
NEVER: Final = sys.maxsize  # batches to wait before a shape is compiled while requests wait


@dataclass
class Prompts:
    """The prompts of one request.

    Attributes:
        items: in the form that batches are filled with; several a text where the method has
            several prompts, or reads variants of a text.
        owners: number of the text of each of them.
        truncated: texts that lose something in one of their prompts.
        tokens: ids of all prompts, the template included.
    """

    items: list[Item]
    owners: list[int]
    truncated: Bool[np.ndarray, "n"]
    tokens: int


class Engine:
    """An embedder as the batcher's device. One thread launches, another fetches; any tokenizes."""

    def __init__(self, embedder: Embedder, *, batch_tokens: int | None = None, clean: bool = False):
        self.embedder = embedder
        views = embedder.views
        self.views = views if batch_tokens is None else views.with_batch_tokens(batch_tokens)
        self.clean = clean
        first = self.views.pipelines[0]  # the other prompts have its shapes
        buckets = first.buckets(first.tokens)
        assert buckets is not None  # only the plan `fitted` waits for texts; serve takes `fixed`
        self.buckets = buckets
        self.shapes: list[Bucket] = []
        self._last: dict[tuple[int, bool], int] = {}  # the longest bucket of the same bits
        self.width = embedder.width
        self.bits = _bits(embedder, str(self.buckets), clean=clean)

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """Put texts into the prompts of the method and tokenize them.

        Raises: UserError for a text without the variants that the method reads.
        """
        if self.clean:
            texts = [clean_sentence(text) for text in texts]
        prompts = Prompts([], [], np.zeros(len(texts), bool), 0)
        for number, (pipeline, own, owners) in enumerate(self.views.each_prompt(texts)):
            found, auxiliary = pipeline.tokenize(own)
            prompts.items += [(number, s) for s in pipeline.sentences(found, auxiliary)]
            prompts.owners += owners
            prompts.truncated[np.asarray(owners)[found.truncated]] = True
            prefix = len(pipeline.prompt.prefix_C) * int(found.shared.sum())
            prompts.tokens += sum(map(len, found.ids)) + prefix
        self.views.forget_bodies()
        return prompts

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

    def finish(self, prompts: Prompts, z_mD: Float[np.ndarray, "m D"]) -> Float[np.ndarray, "n W"]:
        """Return one vector a text, given those of its prompts."""
        return self.views.combine(z_mD, prompts.owners, len(prompts.truncated))

    def bucket(self, item: Item) -> Bucket:
        """Return the bucket of a prompt."""
        number, sentence = item
        return number, self.buckets.find(sentence.length, sentence.shared), sentence.shared

    def sizes(self, bucket: Bucket) -> list[int]:
        """Return the numbers of rows of a bucket's batches, as `warm` has shown; ascending."""
        _, number, shared = bucket
        shape = self.buckets.rows[number], self.buckets.lengths[number], 1, shared
        return self.views.pipelines[0].equal_rows(shape)

    def holders(self, bucket: Bucket) -> list[Bucket]:
        """Return the buckets whose batches leave the bits of a prompt, as `warm` has shown."""
        prompt, number, shared = bucket
        last = self._last.get((number, shared), number)
        return [(prompt, n, shared) for n in range(number, last + 1)]

    def cost(self, bucket: Bucket, rows: int) -> float:
        """Return what a batch of so many rows costs, in tokens."""
        return OVERHEAD * self.views.pipelines[0].tokens + rows * self.buckets.lengths[bucket[1]]

    def launch(self, bucket: Bucket, items: Sequence[Item]) -> tuple[Batch, jax.Array]:
        """Start computing prompts in a batch of a bucket; their vectors come in this order.

        Few prompts take a smaller batch, where `warm` has shown that it has the same bits.
        """
        pipeline = self.views.pipelines[bucket[0]]
        batch = fill_batch(self.buckets, bucket[1], [sentence for _, sentence in items])
        with jax.set_mesh(self.embedder.mesh):
            batch = pipeline.shrink(batch, patience=NEVER)
            return batch, pipeline.launch(batch)

    def fetch(self, launched: tuple[Batch, jax.Array]) -> Float[np.ndarray, "n D"]:
        """Wait for a batch and return the vectors of its prompts."""
        batch, z = launched
        z_BD = distributed.to_host(z)
        return z_BD.reshape(-1, z_BD.shape[-1])[batch.positions]

    def warm(self) -> None:
        """Compile and run every shape once, so that no request waits for the compiler.

        The prompts of a method share the shapes; each has its own cached prefix.
        """
        first, *others = self.views.pipelines
        lengths = self.buckets.lengths
        whole = {self.buckets.find(n, shared=False) for n in (1, *lengths)}
        kinds = [(n, True) for n in range(len(lengths))]
        for number, shared in [*kinds, *((n, False) for n in sorted(whole))]:
            dummy = self._dummy(lengths[number], shared)
            batch = fill_batch(self.buckets, number, [dummy])
            with jax.set_mesh(self.embedder.mesh):
                self.fetch((batch, first.launch(batch)))
                self.shapes += [(0, number, shared)] * (1 + first.prove(batch))
        for shared, numbers in ((True, range(len(lengths))), (False, sorted(whole))):
            self.compare_lengths(numbers, shared)
        batch = fill_batch(self.buckets, 0, [self._dummy(lengths[0], shared=True)])
        with jax.set_mesh(self.embedder.mesh):
            for pipeline in others:
                self.fetch((batch, pipeline.launch(batch)))
        self.views.combine(np.zeros((1, first.width), np.float32), [0], 1)

    def compare_lengths(self, numbers: Sequence[int], shared: bool) -> None:
        """Show which of some buckets, in ascending order, give a prompt the same bits."""
        first, last = self.views.pipelines[0], numbers[-1]
        for short, long in reversed(list(itertools.pairwise(numbers))):
            most = min(_COMPARED, self.buckets.rows[short], self.buckets.rows[long])
            length = self.buckets.lengths[short]
            prompts = [self._dummy(length * (n + 1) // most, shared, n) for n in range(most)]
            one, other = (fill_batch(self.buckets, number, prompts) for number in (short, long))
            with jax.set_mesh(self.embedder.mesh):
                last = last if agree(one, other, first.launch) else short
            self._last[short, shared] = last

    def answers_fast(self) -> bool:
        """Say whether a text alone takes a small batch, shown for the shortest prompts."""
        dummy = self._dummy(self.buckets.lengths[0], shared=True)
        batch = fill_batch(self.buckets, 0, [dummy])
        first = self.views.pipelines[0]
        with jax.set_mesh(self.embedder.mesh):
            first.prove(batch)
            return first.shrink(batch, patience=NEVER) is not batch

    def _dummy(self, length: int, shared: bool, seed: int = 0) -> Sentence:
        """Return a prompt of so many ids, with an auxiliary one where the method has one."""
        most = self.embedder.pretrained.config.V
        ids = np.random.default_rng(seed).integers(0, most, length, np.int32)
        auxiliary = self.views.pipelines[0].auxiliary
        return Sentence(0, ids, shared, 0, None if auxiliary is None else ids)

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
