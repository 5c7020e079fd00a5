"""From texts to vectors without waiting: tokenize ahead, sort into slabs, compute, fetch.

    texts -> ids, in a thread -> slabs -> device, a few in flight -> float32 rows

While the device works on a slab, the thread tokenizes the next texts and the finished slab's
vectors are written.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from prompteol_jax import axes, distributed
from prompteol_jax.encoding import strategy as plans
from prompteol_jax.encoding.batching import Packer, Slab, Sorter, WholeRunner
from prompteol_jax.encoding.buckets import Ladder
from prompteol_jax.encoding.layerwise import LayerwiseRunner
from prompteol_jax.encoding.strategy import Plan
from prompteol_jax.errors import UserError
from prompteol_jax.models.decoder import Decoder, Rows
from prompteol_jax.text.prompt import Prompt, PromptIds

Pooling = Literal["last", "mean"]
Kind = Literal[Pooling, "layers"]  # of every layer: what `encode_layers` gives
_CHUNK: Final = 1024  # texts tokenized at once
_CHUNKS_AHEAD: Final = 2
_SLABS_AHEAD: Final = 2  # in flight beyond the one whose result is awaited
_TIMES: Final = 5  # a slab is timed, for a measured plan


@dataclasses.dataclass
class Report:
    """What one encoding did.

    Attributes:
        truncated: texts that were cut to the model's positions.
        whole: texts that do not begin with the shared prefix and were computed whole.
        tokens: ids of the texts themselves; padded_tokens: with padding and dummy rows.
        shapes: of slabs that this model has been compiled for, in this call or before.
        seconds: of the call; waited: of them, those in which the device had nothing to do. What
            is compiled meanwhile does not count as waiting.
    """

    texts: int = 0
    distinct: int = 0
    truncated: int = 0
    whole: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    slabs: int = 0
    shapes: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def waiting(self) -> float:
        """The fraction of the time that the device waited for the host."""
        return self.waited / self.seconds if self.seconds else 0.0


class Pipeline:
    """Encodes lists of texts with one decoder, one prompt and one mesh."""

    def __init__(
        self, decoder: Decoder, prompt: Prompt, mesh: Mesh, pooling: Kind, plan: Plan = "fixed"
    ):
        self.prompt, self.mesh, self.pooling, self.plan = prompt, mesh, pooling, plan
        self._shapes: set[tuple] = set()
        self._chosen: Ladder | None = None
        self.use(decoder)

    def use(self, decoder: Decoder) -> None:
        """Encode with these weights from now on."""
        self.decoder = decoder
        self._run: LayerwiseRunner | WholeRunner | None = None
        self._cache: Any = None

    def run(
        self, texts: Sequence[str], batch_tokens: int | None, report: Report
    ) -> Iterator[tuple[list[int], Float[np.ndarray, "B D"]]]:
        """Vectors as they are done, slab by slab, with their places in `texts`."""
        flying: deque[tuple[Slab, jax.Array]] = deque()
        with jax.set_mesh(self.mesh), _Watch(report) as watch:
            for slab in self._slabs(texts, batch_tokens, report):
                report.slabs += 1
                report.padded_tokens += slab.rows.ids_BT.size
                flying.append((slab, self._launch(slab, watch)))
                report.shapes = len(self._shapes)
                if len(flying) > _SLABS_AHEAD:
                    yield _landed(*flying.popleft())
            while flying:
                yield _landed(*flying.popleft())

    def ladder(self, batch_tokens: int | None = None, lengths: Iterable[int] = ()) -> Ladder:
        """The ladder that sentences are sorted by.

        A measured or fitted one is chosen when it is first needed, and stays.

        Args:
            lengths: of the sentences, for a ladder that is to be fitted to them.
        """
        tokens = batch_tokens or default_batch_tokens(self.mesh, self.decoder)
        limits = self.prompt.max_tokens, self.mesh.shape["data"]
        if self.plan in ("fixed", "packed"):
            return Ladder.fixed(limits[0], tokens, limits[1])
        if self._chosen is None and self.plan == "fitted":
            self._chosen = plans.fitted(Counter(lengths), tokens, *limits)
        elif self._chosen is None:
            if self.mesh.is_multi_process:
                raise UserError(
                    "plan measured times the devices of one process, and this mesh spans several; "
                    "use plan fixed"
                )
            suffix = self.prompt.suffix_tokens
            key = plans.identity(self.decoder, self.mesh, suffix)
            choose = partial(plans.measured, self._seconds, tokens, suffix, *limits)
            self._chosen = plans.stored(key, choose)
        return self._chosen

    def known_ladder(self, batch_tokens: int | None = None) -> Ladder | None:
        """The ladder, or None where it will be chosen by the first texts."""
        if self.plan in ("measured", "fitted"):
            return self._chosen
        return self.ladder(batch_tokens)

    def _slabs(
        self, texts: Sequence[str], batch_tokens: int | None, report: Report
    ) -> Iterator[Slab]:
        sentences = self._sentences(texts, report)
        lengths: Iterable[int] = ()
        if self.plan == "fitted" and self._chosen is None:
            sentences = list(sentences)
            lengths = (len(ids) for _, ids, _ in sentences)
        ladder = self.ladder(batch_tokens, lengths)
        sorter: Sorter | Packer = Sorter(ladder)
        if self.plan == "packed":
            tokens = batch_tokens or default_batch_tokens(self.mesh, self.decoder)
            sorter = Packer(ladder, tokens, self.mesh.shape["data"])
        for sentence in sentences:
            yield from sorter.add(*sentence)
        yield from sorter.rest()

    def _sentences(
        self, texts: Sequence[str], report: Report
    ) -> Iterator[tuple[int, np.ndarray, bool]]:
        """The ids of each text, and whether they continue the shared prefix."""
        for start, prompts in self._tokenized(texts):
            report.truncated += int(prompts.truncated.sum())
            report.whole += int((~prompts.shared).sum())
            for offset, own in enumerate(prompts.ids):
                ids, shared = own, bool(prompts.shared[offset])
                if self.pooling == "mean":  # which counts the prefix's tokens too, in every text
                    ids = np.concatenate([self.prompt.prefix_C, own]) if shared else own
                    shared = True
                report.tokens += len(ids)
                yield start + offset, ids, shared

    def _tokenized(self, texts: Sequence[str]) -> Iterator[tuple[int, PromptIds]]:
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

    def _launch(self, slab: Slab, watch: _Watch) -> jax.Array:
        """Start computing a slab; returns at once, unless its shape is to be compiled."""
        start = time.perf_counter()
        start_BT = None if slab.rows.start_BT is None else self._on_mesh(slab.rows.start_BT, "BT")
        rows = Rows(
            self._on_mesh(slab.rows.ids_BT, "BT"), self._on_mesh(slab.rows.last_BS, "BS"), start_BT
        )
        model = self._model()
        if self.pooling == "mean":
            z = model.encode_mean(rows)
        else:
            run = model.encode_layers if self.pooling == "layers" else model.encode
            z = run(rows, self._prefix() if slab.shared else None)
        is_new = slab.shape not in self._shapes
        self._shapes.add(slab.shape)
        watch.launched(z, start if is_new else time.perf_counter())
        return z

    def _seconds(self, B: int, T: int) -> float:
        """A slab's, compiled before: the least of several."""
        rows = Rows(np.zeros((B, T), np.int32), np.full((B, 1), T - 1, np.int32))
        slab = Slab(rows, [], np.arange(0), shared=True)
        times = []
        with jax.set_mesh(self.mesh), _Watch(Report()) as watch:
            for _ in range(_TIMES + 1):
                start = time.perf_counter()
                self._launch(slab, watch).block_until_ready()
                times.append(time.perf_counter() - start)
        self._shapes.discard(slab.shape)
        return min(times[1:])

    def _on_mesh(self, array: np.ndarray, dims: str) -> jax.Array:
        return distributed.to_global(array, axes.sharding(dims, array.shape, self.mesh))

    def _model(self) -> LayerwiseRunner | WholeRunner:
        if self._run is None:
            on_cpu = self.mesh.devices.flat[0].platform == "cpu"
            self._run = (LayerwiseRunner if on_cpu else WholeRunner)(self.decoder)
        return self._run

    def _prefix(self) -> Any:
        if self._cache is None:
            self._cache = self._model().prefill(self.prompt.prefix_C)
        return self._cache


def default_batch_tokens(mesh: Mesh, decoder: Decoder) -> int:
    """Tokens of a slab that keep the devices of a mesh busy."""
    platform = mesh.devices.flat[0].platform
    of_device = device_batch_tokens(platform, decoder.width, quantized=decoder.quantized)
    return of_device * mesh.shape["data"]


def device_batch_tokens(platform: str, D: int, *, quantized: bool) -> int:
    """The same for one device that has no part in a model axis.

    On a TPU all activations of the slab then stay in the core's memory. Quantized weights, made
    whole once a slab, want more tokens: as many as keep those of D features there.
    """
    tpu = max(2048, 2**24 // D) if quantized else max(1024, 2**22 // D)
    return {"cpu": 512, "tpu": tpu}.get(platform, 16384)


class _Watch:
    """Notes in a report for how long the device had nothing to do, from start to end."""

    def __init__(self, report: Report):
        self._report = report
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Watch:
        self._start = self._free = time.perf_counter()
        return self

    def launched(self, z: jax.Array, start: float) -> None:
        """The device may have begun with `z` at this time, if it had done what came before."""
        self._pool.submit(self._wait, z, start)

    def _wait(self, z: jax.Array, start: float) -> None:
        self._report.waited += max(0.0, start - self._free)
        z.block_until_ready()
        self._free = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        end = time.perf_counter()
        self._report.waited += end - self._free
        self._report.seconds = end - self._start


def _landed(slab: Slab, z: jax.Array) -> tuple[list[int], np.ndarray]:
    return slab.members, distributed.to_host(z).reshape(-1, z.shape[-1])[slab.places]
