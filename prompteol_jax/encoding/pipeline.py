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
from dataclasses import dataclass, field, replace
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
from prompteol_jax.encoding.report import DeviceWatch, Report
from prompteol_jax.encoding.runners import Reading, Runner, WholeRunner
from prompteol_jax.encoding.small_batches import PATIENCE, SmallBatches
from prompteol_jax.encoding.strategy import Plan, default_batch_tokens
from prompteol_jax.encoding.streams import Streams
from prompteol_jax.errors import NotFinite, UserError
from prompteol_jax.methods.cost import not_saved
from prompteol_jax.methods.edits import Edit
from prompteol_jax.methods.pooling import LAST, Pooling
from prompteol_jax.methods.steps import NOTHING, Steps
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import select
from prompteol_jax.progress import Progress, progress_bar
from prompteol_jax.text.bodies import SharedBodies
from prompteol_jax.text.prompt import Prompt, PromptIds, continue_alike

_CHUNK: Final = 1024  # texts tokenized together
_CHUNKS_AHEAD: Final = 2
_BATCHES_AHEAD: Final = 2  # in flight beyond the one whose result is awaited
# Programs that exchange data must start in the same order on every device.
_SEVERAL_DEVICES: Final = threading.Lock()

Label = TypeVar("Label")


@dataclass
class Seen:
    """What earlier calls leave to later ones: compiled shapes, small ones, and fitted buckets."""

    shapes: set[tuple] = field(default_factory=set)
    small: SmallBatches = field(default_factory=SmallBatches)
    fitted: Buckets | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pipeline:
    """Encodes lists of texts with one decoder, one prompt and one mesh. Threads may share it.

    Attributes:
        width: number of features of a vector.
        steps: what is done inside attention.
        auxiliary: prompt whose heads' outputs the steps subtract.
        batch_tokens: tokens of a batch over all devices; None for the device's default.
        prefix_length: tokens that prefixes are padded to, so that several prompts share programs.
        lender: pipeline of the same decoder, whose runner is used too.
        bodies: ids of texts that this prompt shares with others.
        seen: what earlier calls decided; shared by pipelines that follow each other.
    """

    decoder: Decoder
    prompt: Prompt
    mesh: Mesh
    width: int
    pooling: Pooling = LAST
    edits: tuple[Edit, ...] = ()
    steps: Steps = NOTHING
    auxiliary: Prompt | None = None
    plan: Plan = "fixed"
    batch_tokens: int | None = None
    prefix_length: int | None = None
    lender: Pipeline | None = None
    bodies: SharedBodies | None = None
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
        with jax.set_mesh(self.mesh), DeviceWatch(report) as watch, Streams(self.mesh) as streams:
            tokens = batch_tokens or self.tokens
            batches = self._batches(texts, tokens, report)
            fitting = (self._fitting(batch, len(texts)) for batch in batches)
            launched = (self._started(batch, streams, watch) for batch in fitting)
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
        return not_saved(self.pooling, self.edits, self.steps)

    @cached_property
    def runner(self) -> Runner:
        """What computes the batches; made when it is first needed."""
        if self.lender is not None:
            return self.lender.runner
        layerwise = select.runs_layer_by_layer(self.mesh)
        return (LayerwiseRunner if layerwise else WholeRunner)(self.decoder)

    @cached_property
    def cache(self) -> Any:
        """The keys and values of the shared prefix; made when they are first needed."""
        return self.runner.prefill(self.prompt.prefix_C, self.prefix_length)

    @cached_property
    def auxiliary_cache(self) -> Any:
        """The keys and values of the auxiliary prompt's prefix."""
        assert self.auxiliary is not None
        return self.runner.prefill(self.auxiliary.prefix_C)

    @cached_property
    def _alike(self) -> bool:
        """Whether texts have the same ids in the prompt and in the auxiliary one."""
        return self.auxiliary is not None and continue_alike(self.prompt, self.auxiliary)

    @property
    def tokens(self) -> int:
        """Tokens of a batch over all devices."""
        return self.batch_tokens or default_batch_tokens(self.mesh, self.decoder)

    @property
    def _shares_prefix(self) -> bool:
        own = all(edit.tokens == "own" for edit in self.edits) and not self.steps.reads_all
        return own and self.pooling.tokens != "all"

    def _batches(self, texts: Sequence[str], batch_tokens: int, report: Report) -> Iterator[Batch]:
        sentences = self._sentences(texts, report)
        if self.plan == "fitted" and self.seen.fitted is None:
            sentences = list(sentences)
            self.buckets(batch_tokens, (sentence.length for sentence in sentences))
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
        for start, (prompts, auxiliary) in self._tokenized(texts):
            report.truncated += int(prompts.truncated.sum())
            report.whole += int((~prompts.shared).sum())
            for sentence in self.sentences(prompts, auxiliary, start):
                report.tokens += len(sentence.ids)
                yield sentence

    def tokenize(self, texts: Sequence[str]) -> tuple[PromptIds, PromptIds | None]:
        """Return the ids of texts in the prompt, and in the auxiliary one where there is one."""
        shared = self.bodies
        prompts = self.prompt(texts) if shared is None else shared.ids(self.prompt, texts)
        if self.auxiliary is None:
            return prompts, None
        usual = bool(prompts.shared.all()) and not prompts.truncated.any()
        longest = max(map(len, prompts.ids), default=0)
        if self._alike and usual and longest <= self.auxiliary.most_own:
            return prompts, prompts
        return prompts, self.auxiliary(texts)

    def sentences(
        self, prompts: PromptIds, auxiliary: PromptIds | None = None, start: int = 0
    ) -> Iterator[Sentence]:
        """Yield texts in the form that batches are filled with.

        Args:
            prompts, auxiliary: result of `tokenize`.
            start: number of the first text in the caller's list.
        """
        for offset, (ids, shared) in enumerate(zip(prompts.ids, prompts.shared, strict=True)):
            sentence = self.sentence(start + offset, ids, bool(shared))
            if auxiliary is not None:
                other = auxiliary.ids[offset], bool(auxiliary.shared[offset])
                sentence = self._paired(sentence, *other)
            yield sentence

    def _paired(self, sentence: Sentence, other: np.ndarray, shared: bool) -> Sentence:
        """Return a sentence with its auxiliary prompt; both continue their prefixes, or neither."""
        assert self.auxiliary is not None
        if sentence.shared and shared and self._shares_prefix:
            return sentence._replace(auxiliary=other)
        whole = np.concatenate([self.auxiliary.prefix_C, other]) if shared else other
        if not self._shares_prefix or not sentence.shared:
            return sentence._replace(auxiliary=whole)
        prefix_C = self.prompt.prefix_C
        ids, first = np.concatenate([prefix_C, sentence.ids]), sentence.first + len(prefix_C)
        return Sentence(sentence.member, ids, False, first, whole)

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

    def _tokenized(
        self, texts: Sequence[str]
    ) -> Iterator[tuple[int, tuple[PromptIds, PromptIds | None]]]:
        """Yield the prompts of chunk after chunk, made in a thread that stays ahead."""
        waiting: deque[tuple[int, Future[tuple[PromptIds, PromptIds | None]]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for start in range(0, len(texts), _CHUNK):
                waiting.append((start, pool.submit(self.tokenize, texts[start : start + _CHUNK])))
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
            steps = self.steps if batch.auxiliary is None else self._subtracting(batch)
            reading = Reading(self.pooling, self.edits, first_BS, steps)
            cache = self.cache if batch.shared and self._shares_prefix else None
            return self.runner.encode(rows, cache, reading)

    def _subtracting(self, batch: Batch) -> Steps:
        """Return the steps with the auxiliary prompts' heads, whose computation is started."""
        assert batch.auxiliary is not None and self.steps.subtract is not None
        rows = rows_to_mesh(batch.auxiliary, self.mesh)
        cache = self.auxiliary_cache if batch.shared and self._shares_prefix else None
        subtract = self.steps.subtract
        heads = self.runner.heads(rows, cache, int(subtract.block))
        return replace(self.steps, subtract=replace(subtract, auxiliary_BSNH=heads))

    def _fitting(self, batch: Batch, texts: int) -> Batch:
        """Return a smaller batch where few texts are encoded; the last one of many stays full."""
        return self.shrink(batch) if texts < len(batch.rows.ids_BT) else batch

    def shrink(self, batch: Batch, *, patience: int = PATIENCE) -> Batch:
        """Return a smaller batch for few sentences, where its bits are shown to be the same.

        The mesh must be set. See `small_batches`.
        """
        return self.seen.small.shrink(
            batch, self.launch, self.mesh.shape["data"], patience=patience
        )

    def prove(self, batch: Batch) -> int:
        """Try the smaller shapes of a batch now; return their number. The mesh must be set."""
        return self.seen.small.prove_all(batch, self.launch, self.mesh.shape["data"])

    def equal_rows(self, shape: tuple) -> list[int]:
        """Return the numbers of rows that are shown to be equal, and that of a full batch."""
        return self.seen.small.equal_rows(shape, self.mesh.shape["data"])

    def _started(self, batch: Batch, streams: Streams, watch: DeviceWatch) -> tuple[Batch, Any]:
        """Launch a batch and note when; a compilation does not count as waiting."""
        start = time.perf_counter()
        z_BSW = streams.start(self.launch, batch)
        is_new = batch.shape not in self.seen.shapes
        self.seen.shapes.add(batch.shape)
        watch.launched(z_BSW, start if is_new else time.perf_counter())
        return batch, z_BSW

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
