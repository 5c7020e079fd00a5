"""The programs that a job runs on a slice, described from shapes alone: nothing is loaded or drawn.

They are the very functions that encode and train call: `runners.encode` in the shapes that its
sentences are sorted into, and `TrainStep.step`. A job is a stream of steps; each of its shapes has
a share in it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompteol_jax import axes, models, nn
from prompteol_jax.distributed import Share
from prompteol_jax.encoding import batching, packing, runners
from prompteol_jax.encoding.buckets import Buckets
from prompteol_jax.encoding.strategy import device_batch_tokens
from prompteol_jax.lora import lora as adapters
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder, KVCache, Rows
from prompteol_jax.ops.scan import Remat
from prompteol_jax.quant import formats as quant
from tpu.lengths import Lengths
from train.data.batch_shape import balanced, row_shapes
from train.losses import LOSSES
from train.optimizer import Schedule, make_optimizer
from train.step import Batch, TrainStep, abstract_batch, state_shardings

_DTYPE: Final = jnp.bfloat16


class Step(NamedTuple):
    """One shape that a job compiles: a jitted function and placeholders of its arguments.

    Attributes:
        share: of the stream's steps; sentences, tokens: real ones in a step.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encode:
    """Encoding a steady stream of sentences.

    Attributes:
        C: ids of the shared prefix.
        packed: sentences share rows; else each has its own row in the fixed buckets.
        batch_tokens: tokens of a batch; None for the device's default.
    """

    config: models.Config
    lengths: Lengths
    C: int
    quantize: quant.Kind | None = None
    packed: bool = False
    batch_tokens: int | None = None
    passes: int = 1  # useful passes over the weights

    def scaled(self, load: float, chips: int) -> Encode:
        """The same job with as many times the tokens of a batch, which so many chips share."""
        own = self.batch_tokens or self._device_tokens * chips
        return dataclasses.replace(self, batch_tokens=round(own * load))

    def steps(self, mesh: Mesh) -> Iterator[Step]:
        """The batches of the stream, on a mesh of described devices."""
        model = build.abstract_decoder(self.config, mesh, dtype=_DTYPE, quantize=self.quantize)
        cache = _cache(model, self.config, mesh, self.C)
        batches = self._packed(mesh) if self.packed else self._bucketed(mesh)
        for rows, share, sentences, tokens in batches:
            B, T = rows.ids_BT.shape
            label = f"{B} rows of {T}"
            yield Step(label, share, sentences, tokens, runners.encode, (model, rows, cache))

    def _tokens(self, mesh: Mesh) -> int:
        return self.batch_tokens or self._device_tokens * mesh.shape["data"]

    @property
    def _device_tokens(self) -> int:
        return device_batch_tokens("tpu", self.config.D, quantized=self.quantize is not None)

    def _packed(self, mesh: Mesh) -> Iterator[tuple[Rows, float, float, float]]:
        """Full batches; the few sentences that are too long to share a row are left out."""
        T, S = packing.row_shape(batching.SHORT)
        short = self.lengths.upto(batching.SHORT)
        filled = len(packing.bins(short.draw(batching.WINDOW), T, S))
        B = packing.rows_of(T, self._tokens(mesh), mesh.shape["data"])
        sentences = B * batching.WINDOW / filled
        yield _rows(mesh, B, T, S), 1.0, sentences, sentences * short.mean

    def _bucketed(self, mesh: Mesh) -> Iterator[tuple[Rows, float, float, float]]:
        buckets = Buckets.fixed(self.config.P, self._tokens(mesh), mesh.shape["data"])
        sentences, tokens = Counter(), Counter()
        for length, count in self.lengths.counts.items():
            sentences[buckets.find(length)] += count
            tokens[buckets.find(length)] += count * length
        batches = {n: count / buckets.rows[n] for n, count in sentences.items()}
        for n, count in sorted(sentences.items()):
            B, T = buckets.rows[n], buckets.lengths[n]
            share = batches[n] / sum(batches.values())
            yield _rows(mesh, B, T, None), share, B, B * tokens[n] / count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Training steps of a LoRA adapter on batches of triplets; see `train.config` for the rest."""

    config: models.Config
    lengths: Lengths
    C: int
    quantize: quant.Kind | None = None
    batch: int = 256
    chunks: int = 1
    remat: Remat = "none"
    passes: int = 2  # forward, and backward through the frozen weights

    def scaled(self, load: float, chips: int) -> Train:
        """The same job with as many times the triplets a batch, however many chips have one."""
        del chips
        return dataclasses.replace(self, batch=round(self.batch * load))

    def steps(self, mesh: Mesh) -> Iterator[Step]:
        """The one step, with as many rows as a typical batch fills."""
        lora = adapters.LoraConfig()
        model = build.abstract_decoder(self.config, mesh, dtype=_DTYPE, quantize=self.quantize)
        model = adapters.attach(model, self.config, lora, mesh)
        graph, start, frozen = nnx.split(model, nn.Lora, ...)
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
        )
        lengths = self.lengths.draw(3 * self.batch)
        batch = self._batch(mesh, lengths)
        prefix_C = _whole(mesh, (self.C,), jnp.int32)
        key = _whole(mesh, (), jax.eval_shape(lambda: jax.random.key(0)).dtype)
        arguments = (learner.abstract_state(start), frozen, batch, prefix_C, key)
        B, T = batch.rows.ids_BT.shape
        label = f"{B} rows of {T}"
        yield Step(label, 1.0, len(lengths), sum(lengths), learner.step, arguments)

    def _batch(self, mesh: Mesh, lengths: list[int]) -> Batch:
        """As many rows as a typical batch fills, the fullest shard along data deciding for all."""
        shape, shards = row_shapes(max(self.lengths.counts), self.C, mesh)[0], mesh.shape["data"]
        share = Share.of(mesh)
        rows = 0
        for lengths_B3 in np.array(lengths).reshape(share.count, -1, 3):
            for own in balanced(lengths_B3.sum(1).tolist(), len(share.shards)):
                rows = max(rows, len(packing.bins(lengths_B3[own].ravel().tolist(), *shape)))
        rows = rows_of_shard(rows, shards, self.chunks)
        return abstract_batch(mesh, rows * shards, shape, self.batch)


def rows_of_shard(rows: int, shards: int, chunks: int) -> int:
    """Rows of a shard where a typical batch fills so many: the fullest of a run has a few more.

    A multiple of chunks, up to an 8th more; a small batch up to 3 more.
    """
    unit = chunks
    while unit * shards < 4 or 16 * unit <= rows:
        unit *= 2
    return -(-rows // unit) * unit


def linear_weights(config: models.Config) -> int:
    """Weights of the decoder's linear layers: no embeddings, norms, biases or head."""
    c = config
    attention = 2 * c.D * c.N * c.sizes["H"] + 2 * c.D * c.sizes["K"] * c.sizes["H"]
    return c.L * (attention + (2 if c.family == "opt" else 3) * c.D * c.F)


def _rows(mesh: Mesh, B: int, T: int, S: int | None) -> Rows:
    """Placeholders of rows: packed ones with S sentences, or of one sentence each."""

    def ids(dims: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=axes.sharding(dims, shape, mesh))

    start_BT = None if S is None else ids("BT", B, T)
    return Rows(ids("BT", B, T), ids("BS", B, S or 1), start_BT)


def _cache(model: Decoder, config: models.Config, mesh: Mesh, C: int) -> KVCache | None:
    """Placeholders of the shared prefix's keys and values, cut along their heads."""
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
