"""From texts to vectors without waiting: tokenise ahead, sort into slabs, compute, fetch.

    texts -> ids, in a thread -> slabs -> device, a few in flight -> float32 rows

While the device works on a slab, the thread tokenises the next texts and the finished slab's
vectors are written.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from prompteol_jax import axes, distributed
from prompteol_jax.models.decoder import Decoder, KVCache, Rows
from prompteol_jax.slabs import (
    Ladder,
    Slab,
    Sorter,
    encode,
    encode_layers,
    encode_mean,
    prefill,
)
from prompteol_jax.tokens import Prompt, PromptIds

Pooling = Literal["last", "mean"]
Kind = Literal[Pooling, "layers"]  # of every layer: what `encode_layers` gives
_CHUNK: Final = 1024  # texts tokenised at once
_CHUNKS_AHEAD: Final = 2
_SLABS_AHEAD: Final = 2  # in flight beyond the one whose result is awaited


@dataclasses.dataclass
class Report:
    """What one encoding did.

    Attributes:
        truncated: texts that were cut to the model's positions.
        whole: texts that do not begin with the shared prefix and were computed whole.
        tokens: ids of the texts themselves; padded_tokens: with padding and dummy rows.
    """

    texts: int = 0
    distinct: int = 0
    truncated: int = 0
    whole: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    slabs: int = 0


class Pipeline:
    """Encodes lists of texts with one decoder, one prompt and one mesh."""

    def __init__(self, decoder: Decoder, prompt: Prompt, mesh: Mesh, pooling: Kind):
        self.decoder, self.prompt, self.mesh, self.pooling = decoder, prompt, mesh, pooling
        self._cache: KVCache | None = None

    def use(self, decoder: Decoder) -> None:
        """Encode with these weights from now on."""
        self.decoder, self._cache = decoder, None

    def run(
        self, texts: Sequence[str], batch_tokens: int | None, report: Report
    ) -> Iterator[tuple[list[int], Float[np.ndarray, "B D"]]]:
        """Vectors as they are done, slab by slab, with their places in `texts`."""
        ladder = Ladder.fixed(
            self.prompt.max_tokens,
            batch_tokens or default_batch_tokens(self.mesh, self.decoder.width),
            self.mesh.shape["data"],
        )
        flying: deque[tuple[Slab, jax.Array]] = deque()
        with jax.set_mesh(self.mesh):
            for slab in self._slabs(texts, Sorter(ladder), report):
                report.slabs += 1
                report.padded_tokens += slab.ids_BT.size
                flying.append((slab, self._launch(slab)))
                if len(flying) > _SLABS_AHEAD:
                    yield _landed(*flying.popleft())
            while flying:
                yield _landed(*flying.popleft())

    def _slabs(self, texts: Sequence[str], sorter: Sorter, report: Report) -> Iterator[Slab]:
        for start, prompts in self._tokenised(texts):
            report.truncated += int(prompts.truncated.sum())
            report.whole += int((~prompts.shared).sum())
            for offset, own in enumerate(prompts.ids):
                ids, shared = own, bool(prompts.shared[offset])
                if shared and self.pooling == "mean":  # which counts the prefix's tokens too
                    ids, shared = np.concatenate([self.prompt.prefix_C, own]), False
                report.tokens += len(ids)
                yield from sorter.add(start + offset, ids, shared)
        yield from sorter.rest()

    def _tokenised(self, texts: Sequence[str]) -> Iterator[tuple[int, PromptIds]]:
        """Prompts of chunk after chunk, made in a thread that stays ahead."""
        waiting: deque[tuple[int, Future[PromptIds]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for start in range(0, len(texts), _CHUNK):
                waiting.append((start, pool.submit(self.prompt, texts[start : start + _CHUNK])))
                if len(waiting) > _CHUNKS_AHEAD:
                    first, prompts = waiting.popleft()
                    yield first, prompts.result()
            while waiting:
                first, prompts = waiting.popleft()
                yield first, prompts.result()

    def _launch(self, slab: Slab) -> jax.Array:
        """Start computing a slab; returns at once."""
        rows = Rows(self._on_mesh(slab.ids_BT, "BT"), self._on_mesh(slab.last_BS, "BS"))
        if self.pooling == "mean":
            return encode_mean(self.decoder, rows)
        run = encode_layers if self.pooling == "layers" else encode
        return run(self.decoder, rows, self._prefix() if slab.shared else None)[:, 0]

    def _on_mesh(self, array: np.ndarray, dims: str) -> jax.Array:
        return distributed.to_global(array, axes.sharding(dims, array.shape, self.mesh))

    def _prefix(self) -> KVCache:
        if self._cache is None:
            self._cache = prefill(self.decoder, self.prompt.prefix_C)
        return self._cache


def default_batch_tokens(mesh: Mesh, D: int) -> int:
    """Tokens of a slab that keep the devices of a mesh busy.

    On a TPU the slab's activations, D wide, then stay in the core's memory.
    """
    platform = mesh.devices.flat[0].platform
    tokens = {"cpu": 512, "tpu": max(2048, 2**24 // D)}.get(platform, 16384)
    return tokens * mesh.shape["data"]


def _landed(slab: Slab, z_BD: jax.Array) -> tuple[list[int], np.ndarray]:
    return slab.members, distributed.to_host(z_BD)[: len(slab.members)]
