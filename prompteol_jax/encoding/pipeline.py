"""From texts to vectors without waiting: tokenize ahead, sort into batches, compute, fetch.

    texts -> ids, in a thread -> batches -> device, a few in flight -> float32 rows

While the device works on a batch, the thread tokenizes the next texts and the vectors of the
finished batch are written.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from prompteol_jax import distributed
from prompteol_jax.encoding.batching import (
    Batch,
    Packer,
    Sentence,
    Sorter,
    rows_to_mesh,
    to_mesh,
)
from prompteol_jax.encoding.buckets import Buckets
from prompteol_jax.encoding.layerwise import LayerwiseRunner
from prompteol_jax.encoding.runners import Reading, Runner, WholeRunner
from prompteol_jax.encoding.strategy import Plan, default_batch_tokens
from prompteol_jax.errors import NotFinite, UserError
from prompteol_jax.methods.edits import Edit
from prompteol_jax.methods.pooling import LAST, Pooling
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import select
from prompteol_jax.progress import Progress, progress_bar
from prompteol_jax.text.prompt import Prompt, PromptIds

_CHUNK: Final = 1024  # texts tokenized together
_CHUNKS_AHEAD: Final = 2
_BATCHES_AHEAD: Final = 2  # in flight beyond the one whose result is awaited
# Programs that exchange data must start in the same order on every device.
_SEVERAL_DEVICES: Final = threading.Lock()

Label = TypeVar("Label")


@dataclass
class Report:
    """What one call did.

    Attributes:
        texts: number of texts; distinct: number of distinct ones, which are encoded.
        truncated: texts that were cut to `Embedder.max_tokens`.
        whole: texts that do not begin with the shared prefix, or are too long to share it, and
            were computed whole.
        tokens: ids of the texts themselves; padded_tokens: with padding and empty rows.
        batches: number of batches.
        shapes: shapes of batches that were compiled for this model, in this call or before.
        seconds: duration of the call; waited: seconds of it in which the device had nothing to
            do. Compilation does not count as waiting.
    """

    texts: int = 0
    distinct: int = 0
    truncated: int = 0
    whole: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    shapes: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def waiting(self) -> float:
        """The fraction of the time that the device waited for the host."""
        return self.waited / self.seconds if self.seconds else 0.0


@dataclass
class Seen:
    """What earlier calls leave to later ones: compiled shapes, and fitted buckets."""

    shapes: set[tuple] = field(default_factory=set)
    fitted: Buckets | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pipeline:
    """Encodes lists of texts with one decoder, one prompt and one mesh. Threads may share it.

    Attributes:
        width: number of features of a vector.
        batch_tokens: tokens of a batch over all devices; None for the device's default.
        seen: what earlier calls decided; shared by pipelines that follow each other.
    """

    decoder: Decoder
    prompt: Prompt
    mesh: Mesh
    width: int
    pooling: Pooling = LAST
    edits: tuple[Edit, ...] = ()
    plan: Plan = "fixed"
    batch_tokens: int | None = None
    seen: Seen = field(default_factory=Seen)

    def encode(
        self,
        texts: Sequence[str],
        report: Report,
        *,
        batch_tokens: int | None = None,
        progress: Progress = None,
        check_finite: bool = True,
    ) -> Float[np.ndarray, "n W"]:
        """Encode texts, each distinct one once; the rows are in the order of the texts.

        Args:
            report: counts of this call, filled in.
            batch_tokens: tokens of a batch, in place of the pipeline's own number.
            progress: show a bar on standard error; see `progress_bar`.
        Raises: NotFinite naming a text whose vector is not finite.
        """
        first: dict[str, int] = {}
        index = [first.setdefault(text, len(first)) for text in texts]
        distinct = list(first)
        report.texts, report.distinct = len(texts), len(distinct)
        vectors = np.empty((len(distinct), self.width), np.float32)
        with progress_bar("encode", len(distinct), progress) as advance:
            for members, z_BW in self.run(distinct, report, batch_tokens):
                if check_finite:
                    refuse_not_finite(z_BW, [distinct[member] for member in members])
                vectors[members] = z_BW
                advance(len(members))
        return vectors[np.asarray(index, np.int64)]

    def run(
        self, texts: Sequence[str], report: Report, batch_tokens: int | None = None
    ) -> Iterator[tuple[list[int], Float[np.ndarray, "B W"]]]:
        """Yield vectors as they are done, batch by batch, with their indices in `texts`."""
        with jax.set_mesh(self.mesh), _Watch(report) as watch:
            tokens = batch_tokens or self.tokens
            batches = self._batches(texts, tokens, report)
            launched = ((batch, self._watched(batch, watch)) for batch in batches)
            for batch, z_BSW in fetch_behind(self._counted(launched, report)):
                yield batch.members, z_BSW.reshape(-1, z_BSW.shape[-1])[batch.positions]

    def buckets(self, batch_tokens: int, lengths: Iterable[int] = ()) -> Buckets | None:
        """Return the buckets that sentences are sorted by; None where no text has decided yet.

        Args:
            lengths: numbers of ids of the sentences, which fitted buckets are chosen for.
        """
        longest, multiple = self.prompt.max_tokens, self.mesh.shape["data"]
        if self.plan != "fitted":
            return Buckets.fixed(longest, batch_tokens, multiple)
        with self.seen.lock:
            counts = Counter(lengths)
            if self.seen.fitted is None and counts:
                self.seen.fitted = Buckets.fitted(counts, longest, batch_tokens, multiple)
            return self.seen.fitted

    @property
    def given_up(self) -> list[str]:
        """What the pooling and the edits keep the encoder from saving."""
        found = []
        if self.pooling.tokens != "last":
            found.append(f"pooling {self.pooling.name}: last block for every token")
        if not self._shares_prefix:
            reasons = [f"pooling {self.pooling.name}"] if self.pooling.tokens == "all" else []
            reasons += [type(edit).__name__ for edit in self.edits if edit.tokens == "all"]
            found.append(f"{', '.join(reasons)}: prefix computed for every text")
        return found

    @cached_property
    def runner(self) -> Runner:
        """What computes the batches; made when it is first needed."""
        layerwise = select.runs_layer_by_layer(self.mesh)
        return (LayerwiseRunner if layerwise else WholeRunner)(self.decoder)

    @cached_property
    def cache(self) -> Any:
        """The keys and values of the shared prefix; made when they are first needed."""
        return self.runner.prefill(self.prompt.prefix_C)

    @property
    def tokens(self) -> int:
        """Tokens of a batch over all devices."""
        return self.batch_tokens or default_batch_tokens(self.mesh, self.decoder)

    @property
    def _shares_prefix(self) -> bool:
        return self.pooling.tokens != "all" and all(edit.tokens == "own" for edit in self.edits)

    def _batches(self, texts: Sequence[str], batch_tokens: int, report: Report) -> Iterator[Batch]:
        sentences = self._sentences(texts, report)
        if self.plan == "fitted" and self.seen.fitted is None:
            sentences = list(sentences)
            self.buckets(batch_tokens, (len(sentence.ids) for sentence in sentences))
        buckets = self.buckets(batch_tokens)
        if buckets is None:
            return
        sorter: Sorter | Packer = Sorter(buckets)
        if self.plan == "packed":
            sorter = Packer(buckets, batch_tokens, self.mesh.shape["data"])
        for sentence in sentences:
            yield from sorter.add(sentence)
        yield from sorter.rest()

    def _sentences(self, texts: Sequence[str], report: Report) -> Iterator[Sentence]:
        for start, prompts in self._tokenized(texts):
            report.truncated += int(prompts.truncated.sum())
            report.whole += int((~prompts.shared).sum())
            for offset, (ids, shared) in enumerate(zip(prompts.ids, prompts.shared, strict=True)):
                sentence = self.sentence(start + offset, ids, bool(shared))
                report.tokens += len(sentence.ids)
                yield sentence

    def sentence(self, member: int, ids: np.ndarray, shared: bool) -> Sentence:
        """Return a text's ids up to the last one that is read, with the prefix where it is read.

        Args:
            member: index of the text in the caller's list.
            ids: ids of its prompt, without the shared prefix where the prompt continues it.
        """
        if self.pooling.tokens == "last" and self._shares_prefix:
            return Sentence(member, ids, shared)
        C = len(self.prompt.prefix_C) if shared else 0
        whole = np.concatenate([self.prompt.prefix_C, ids]) if shared else ids
        first, end = self.pooling.span(whole, self.prompt)
        if not 0 <= first < end <= len(whole):
            name, T = self.pooling.name, len(whole)
            raise ValueError(f"pooling {name} reads positions {first} to {end} of {T}")
        most = self.prompt.most_shared
        if most is not None and end < len(whole) > most:
            name, T = self.pooling.name, len(whole)
            raise UserError(
                f"pooling {name} reads {end} of the {T} tokens of a text, but beyond {most} this "
                f"model's rope depends on the number of tokens; set max_tokens to {most}"
            )
        if not self._shares_prefix:  # no text has a prefix in the cache, so all share none
            return Sentence(member, whole[:end], True, first)
        if first < C:
            return Sentence(member, whole[:end], False, first)
        return Sentence(member, whole[C:end], shared, first - C)

    def _tokenized(self, texts: Sequence[str]) -> Iterator[tuple[int, PromptIds]]:
        """Yield the prompts of chunk after chunk, made in a thread that stays ahead."""
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

    def launch(self, batch: Batch) -> jax.Array:
        """Start computing a batch and do not wait for it, unless its shape is to be compiled.

        The mesh must be set (`jax.set_mesh`).
        """
        with _SEVERAL_DEVICES if self.mesh.size > 1 else nullcontext():
            rows = rows_to_mesh(batch.rows, self.mesh)
            reads_last = self.pooling.tokens == "last"
            first_BS = None if reads_last else to_mesh(batch.first_BS, "BS", self.mesh)
            reading = Reading(self.pooling, self.edits, first_BS)
            cache = self.cache if batch.shared and self._shares_prefix else None
            return self.runner.encode(rows, cache, reading)

    def _watched(self, batch: Batch, watch: _Watch) -> jax.Array:
        """Launch a batch and note when; a compilation does not count as waiting."""
        start = time.perf_counter()
        z_BSW = self.launch(batch)
        is_new = batch.shape not in self.seen.shapes
        self.seen.shapes.add(batch.shape)
        watch.launched(z_BSW, start if is_new else time.perf_counter())
        return z_BSW

    def _counted(
        self, launched: Iterable[tuple[Batch, jax.Array]], report: Report
    ) -> Iterator[tuple[Batch, jax.Array]]:
        for batch, z_BSW in launched:
            report.batches += 1
            report.padded_tokens += batch.rows.ids_BT.size
            report.shapes = len(self.seen.shapes)
            yield batch, z_BSW


def fetch_behind(
    launched: Iterable[tuple[Label, jax.Array]], ahead: int = _BATCHES_AHEAD
) -> Iterator[tuple[Label, np.ndarray]]:
    """Yield labels and fetched results in their order, with `ahead` more of them in flight."""
    in_flight: deque[tuple[Label, jax.Array]] = deque()
    for labelled in launched:
        in_flight.append(labelled)
        if len(in_flight) > ahead:
            label, z = in_flight.popleft()
            yield label, distributed.to_host(z)
    for label, z in in_flight:
        yield label, distributed.to_host(z)


def refuse_not_finite(z_nW: np.ndarray, texts: Sequence[str], where: str = "") -> None:
    """Refuse vectors that are not finite.

    Args:
        where: words that go before the message.
    Raises: NotFinite naming the first text with such a vector.
    """
    finite_n = np.isfinite(z_nW).all(axis=1)
    if not finite_n.all():
        bad = np.flatnonzero(~finite_n)
        raise NotFinite(
            f"{where}{len(bad)} vectors are not finite, the first that of {texts[bad[0]][:200]!r}; "
            "the weights may be damaged, or try dtype float32"
        )


class _Watch:
    """Notes in a report for how long the device had nothing to do, from start to end."""

    def __init__(self, report: Report):
        self._report = report
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Watch:
        self._start = self._free = time.perf_counter()
        return self

    def launched(self, z: jax.Array, start: float) -> None:
        """Note that the device could begin with `z` at this time, if it had done all before it."""
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
