"""The programs that a job runs on a slice, described from shapes alone: nothing is loaded or drawn.

They are the functions that encode and train call: `runners.encode` in the shapes of its batches,
and `TrainStep.step`. A job is a stream of steps; each of its shapes has a share in it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompteol_jax import axes, models, nn
from prompteol_jax.distributed import Share
from prompteol_jax.encoding import batching, packing, runners
from prompteol_jax.encoding.buckets import Buckets
from prompteol_jax.lora.lora import LoraConfig, attach
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder, KVCache, Rows
from prompteol_jax.ops import select
from prompteol_jax.ops.scan import Remat
from prompteol_jax.quant.formats import Kind
from tpu.lengths import Lengths
from train.data.batch_shape import balanced, row_shapes
from train.losses import LOSSES
from train.optimizer import Schedule, make_optimizer
from train.step import TrainBatch, TrainStep, abstract_batch, state_shardings

_DTYPE: Final = jnp.bfloat16
# Share of a stream's tokens below which sentences that are too long to be packed are left out: the
# programs of their buckets take longer to compile than they can change the plan.
NEGLIGIBLE: Final = 0.01


class Step(NamedTuple):
    """One shape that a job compiles: a jitted function and placeholders of its arguments.

    Attributes:
        share: Share of the stream's steps.
        sentences: Sentences of a step.
        tokens: Real tokens of a step.
    """

    label: str
    share: float
    sentences: float
    tokens: float
    function: Any
    arguments: tuple

    def trace(self, mesh: Mesh) -> Any:
        """Trace the function for a mesh of described devices."""
        with jax.set_mesh(mesh):
            return self.function.trace(*self.arguments)


class JobBatches(NamedTuple):
    """All batches of one shape that a stream fills.

    Attributes:
        rows: Placeholders of a batch.
        count: Batches that the counted sentences fill.
        sentences: Sentences of a batch.
        tokens: Real tokens of a batch.
    """

    rows: Rows
    count: float
    sentences: float
    tokens: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """Encoding a steady stream of sentences.

    Attributes:
        C: Ids of the shared prefix.
        packed: Whether short sentences share rows; all others have a row each, in fixed buckets.
        batch_tokens: Tokens of a batch; None for the device's own number.
        fsdp: Whether the linear layers' matrices are sharded over data too.
        passes: Useful passes over the weights.
    """

    config: models.Config
    lengths: Lengths
    C: int
    quantize: Kind | None = None
    packed: bool = False
    batch_tokens: int | None = None
    fsdp: bool = False
    passes: ClassVar[int] = 1

    def scaled(self, load: float, chips: int) -> Encode:
        """Return the job with `load` times the tokens of a batch.

        Args:
            chips: Chips that share the device's own number of tokens each.
        """
        own = self.batch_tokens or self._device_tokens * chips
        return dataclasses.replace(self, batch_tokens=max(1, round(own * load)))

    @property
    def flops_per_token(self) -> float:
        """FLOP of the sentences over their ids, with the attention that they need."""
        lengths = self.lengths.cut(self.config.P - self.C)
        flops = sum(sentence_flops(self.config, n, self.C) * m for n, m in lengths.counts.items())
        return flops / lengths.tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """What the plan says of sentences that it does not take as they are."""
        notes = []
        longer = self.lengths.split(self.config.P - self.C)[1].total
        if longer:
            notes.append(
                f"{longer:,} of {self.lengths.total:,} sentences are cut to the model's "
                f"{self.config.P} ids"
            )
        _, long = self._streams()
        if self.packed and long.total and self._negligible(long):
            share = long.tokens / self.lengths.tokens
            notes.append(
                f"{long.total:,} of {self.lengths.total:,} sentences are not planned: they have "
                f"more than {batching.SHORT} ids, {share:.2%} of all ids"
            )
        return tuple(notes)

    def steps(self, mesh: Mesh) -> Iterator[Step]:
        """Yield the shapes of the stream's batches, on a mesh of described devices."""
        model = _model(self, mesh)
        cache = _cache(model, self.config, mesh, self.C)
        shapes = list(self._batches(mesh))
        batches = sum(shape.count for shape in shapes)
        for rows, count, sentences, tokens in shapes:
            B, T = rows.ids_BT.shape
            arguments = (model, rows, cache)
            label, share = f"{B} rows of {T}", count / batches
            yield Step(label, share, sentences, tokens, runners.encode, arguments)

    def _tokens(self, mesh: Mesh) -> int:
        return self.batch_tokens or self._device_tokens * mesh.shape["data"]

    @property
    def _device_tokens(self) -> int:
        return select.device_batch_tokens("tpu", self.config.D, quantized=self.quantize is not None)

    def _streams(self) -> tuple[Lengths, Lengths]:
        """Return the sentences that share rows if `packed`, and the others."""
        return self.lengths.cut(self.config.P - self.C).split(batching.SHORT)

    def _negligible(self, long: Lengths) -> bool:
        return long.tokens < NEGLIGIBLE * self.lengths.tokens

    def _batches(self, mesh: Mesh) -> Iterator[JobBatches]:
        """Yield the batches as the encoder forms them."""
        short, long = self._streams()
        if not self.packed:
            yield from self._bucketed(mesh, self.lengths.cut(self.config.P - self.C))
            return
        if short.total:
            yield self._packed(mesh, short)
        if not self._negligible(long):
            yield from self._bucketed(mesh, long)

    def _packed(self, mesh: Mesh, short: Lengths) -> JobBatches:
        T, S = packing.row_shape(batching.SHORT)
        filled = len(packing.bins(short.draw(batching.WINDOW), T, S))
        B = packing.rows_of(T, self._tokens(mesh), mesh.shape["data"])
        sentences = B * batching.WINDOW / filled
        rows = _rows(mesh, B, T, S)
        return JobBatches(rows, short.total / sentences, sentences, sentences * short.mean)

    def _bucketed(self, mesh: Mesh, lengths: Lengths) -> Iterator[JobBatches]:
        buckets = Buckets.fixed(self.config.P, self._tokens(mesh), mesh.shape["data"])
        sentences, tokens = Counter(), Counter()
        for length, count in lengths.counts.items():
            sentences[buckets.find(length)] += count
            tokens[buckets.find(length)] += count * length
        for bucket, count in sorted(sentences.items()):
            B, T = buckets.rows[bucket], buckets.lengths[bucket]
            yield JobBatches(_rows(mesh, B, T, None), count / B, B, B * tokens[bucket] / count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Training steps on batches of triplets; see `train.config` for the rest.

    Attributes:
        full: Whether every weight trains instead of a LoRA adapter.
        fsdp: Whether the linear layers' matrices are sharded over data too.
    """

    config: models.Config
    lengths: Lengths
    C: int
    quantize: Kind | None = None
    batch: int = 256
    chunks: int = 1
    remat: Remat = "none"
    full: bool = False
    fsdp: bool = False
    notes: ClassVar[tuple[str, ...]] = ()

    @property
    def passes(self) -> int:
        """Useful passes over the weights: forward, backward, and their gradients with `full`."""
        return 3 if self.full else 2

    def scaled(self, load: float, chips: int) -> Train:
        """Return the job with `load` times the triplets of a batch, on any number of chips."""
        del chips
        return dataclasses.replace(self, batch=max(1, round(self.batch * load)))

    def steps(self, mesh: Mesh) -> Iterator[Step]:
        """Yield the one step, with as many rows as a typical batch fills."""
        model = _model(self, mesh, jnp.float32 if self.full else None)
        if not self.full:
            model = attach(model, self.config, LoraConfig(), mesh)
        graph, start, frozen = nnx.split(model, nn.Weight if self.full else nn.Lora, ...)
        optimizer = make_optimizer(Schedule(5e-4, 1000, 100))
        learner = TrainStep(
            graph=graph,
            optimizer=optimizer,
            shardings=state_shardings(optimizer, start, mesh),
            loss_function=LOSSES["infonce"].function,
            shards=mesh.shape["data"],
            chunks=self.chunks,
            remat=self.remat,
            stochastic=True,
            weights=model.layers.largest_matrix,
        )
        lengths = self.lengths.draw(3 * self.batch)
        batch = self._batch(mesh, lengths)
        prefix_C = _whole(mesh, (self.C,), jnp.int32)
        key = _whole(mesh, (), jax.eval_shape(lambda: jax.random.key(0)).dtype)
        arguments = (learner.abstract_state(start), frozen, batch, prefix_C, key)
        B, T = batch.rows.ids_BT.shape
        label = f"{B} rows of {T}"
        yield Step(label, 1.0, len(lengths), sum(lengths), learner.step, arguments)

    def _batch(self, mesh: Mesh, lengths: list[int]) -> TrainBatch:
        """Return placeholders of as many rows as a typical batch fills, in its fullest shard."""
        shape, shards = row_shapes(max(self.lengths.counts), self.C, mesh)[0], mesh.shape["data"]
        share = Share.of(mesh)
        rows = 0
        for lengths_B3 in np.array(lengths).reshape(share.count, -1, 3):
            for own in balanced(lengths_B3.sum(1).tolist(), len(share.shards)):
                rows = max(rows, len(packing.bins(lengths_B3[own].ravel().tolist(), *shape)))
        rows = rows_of_shard(rows, shards, self.chunks)
        return abstract_batch(mesh, rows * shards, shape, self.batch)


def _model(job: Encode | Train, mesh: Mesh, weight_dtype: Any = None) -> Decoder:
    return build.abstract_decoder(
        job.config,
        mesh,
        dtype=_DTYPE,
        weight_dtype=weight_dtype,
        quantize=job.quantize,
        fsdp=job.fsdp,
    )


def rows_of_shard(rows: int, shards: int, chunks: int) -> int:
    """Return the rows of a shard, of which a typical batch fills `rows` and others a few more.

    They are a multiple of chunks, at most an eighth more; of a small batch at most 3 more.
    """
    unit = chunks
    while unit * shards < 4 or 16 * unit <= rows:
        unit *= 2
    return -(-rows // unit) * unit


def linear_weights(config: models.Config) -> int:
    """Count the weights of the decoder's linear layers: no embeddings, norms, biases or head."""
    c = config
    attention = 2 * c.D * c.N * c.sizes["H"] + 2 * c.D * c.sizes["K"] * c.sizes["H"]
    return c.L * (attention + c.mlp_matrices * c.D * c.F)


def sentence_flops(config: models.Config, own: int, C: int) -> int:
    """Return the FLOP of encoding a sentence, as docs/explain/performance.md counts them.

    Args:
        own: ids of the sentence after the prefix.
        C: ids of the prefix, which are seen and not computed.
    """
    c, (H, K) = config, (config.sizes["H"], config.sizes["K"])
    keys_values, others = 2 * c.D * K * H, 2 * c.D * c.N * H + c.mlp_matrices * c.D * c.F
    last = 2 * own * keys_values + 2 * others
    scanned = 2 * own * (keys_values + others)
    windows = getattr(c, "window_L", None) or (None,) * c.L
    pairs = sum(_pairs_seen(own, C, window) for window in windows[:-1])
    pairs += min(C + own, windows[-1] or C + own)
    return (c.L - 1) * scanned + last + 4 * c.N * H * pairs


def _pairs_seen(own: int, C: int, window: int | None) -> int:
    """Count the pairs of a sentence's token and a token that it sees in a layer."""
    within = own if window is None else max(0, min(own, window - C))  # tokens that see all before
    return within * C + within * (within + 1) // 2 + (own - within) * (window or 0)


def _rows(mesh: Mesh, B: int, T: int, S: int | None) -> Rows:
    """Return placeholders of rows: packed ones with S sentences, or of one sentence each."""

    def ids(dims: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=axes.sharding(dims, shape, mesh))

    start_BT = None if S is None else ids("BT", B, T)
    return Rows(ids("BT", B, T), ids("BS", B, S or 1), start_BT)


def _cache(model: Decoder, config: models.Config, mesh: Mesh, C: int) -> KVCache | None:
    """Return placeholders of the shared prefix's keys and values, sharded along their heads."""
    if C == 0:
        return None
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(runners.prefill, model, jax.ShapeDtypeStruct((C,), jnp.int32))

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dims = "LCKH" if x.ndim == 4 else "CKH"
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=axes.sharding(dims, x.shape, mesh))

    return jax.tree.map(place, shapes)


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
