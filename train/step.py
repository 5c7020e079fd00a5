"""One training step: shared prefix, vectors in chunks, loss over the global batch, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from prompteol_jax import nn
from prompteol_jax.mesh import gathered
from prompteol_jax.models.decoder import Decoder, Rows
from prompteol_jax.ops import dropout, select
from prompteol_jax.ops.platform_jit import PlatformJit
from prompteol_jax.ops.scan import Remat
from train.gradcache import in_chunks
from train.losses.loss import LossFunction, check_metrics
from train.optimizer import optimizer_shardings


class TrainBatch(NamedTuple):
    """Packed sentences of a global batch, sharded along data like its triplets or pairs.

    The arrays are those of jax or, before they are on the mesh, of numpy, or placeholders.

    Attributes:
        sentence_BT: number of each token's sentence in the global batch, from which its dropout
            keys are made; undefined on padding.
        slot_B3: index of each column's vector in the flattened `[rows * S]` outputs of the shard;
            with two positions a column has two, one after the other.
        number_B: number of each triplet in the batch as it was read.
        needs: what the loss takes of every row with its vectors, by name, in the order of
            `slot_B3`.
    """

    rows: Rows
    sentence_BT: Int[Any, "rows T"]
    slot_B3: Int[Any, "B 3"] | Int[Any, "B 2"]
    number_B: Int[Any, "B"]
    needs: dict[str, Any] = {}  # noqa: RUF012


def abstract_batch(
    mesh: Mesh,
    rows: int,
    row_shape: tuple[int, int],
    triplets: int,
    columns: int = 3,
    *,
    needs: Mapping[str, jax.ShapeDtypeStruct] = MappingProxyType({}),
) -> TrainBatch:
    """Return placeholders of a batch, from which a step is compiled without data.

    Args:
        rows: number of rows of the whole batch.
        row_shape: tokens of a row, and the most sentences in it.
        triplets: number of triplets of the global batch; columns: vectors of each.
        needs: what the loss takes of one row, by name.
    """

    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    T, S = row_shape
    packed = Rows(ids(rows, T), ids(rows, S), ids(rows, T))
    every = {
        name: jax.ShapeDtypeStruct((triplets, *one.shape), one.dtype, sharding=sharding)
        for name, one in needs.items()
    }
    return TrainBatch(packed, ids(rows, T), ids(triplets, columns), ids(triplets), every)


class TrainState(NamedTuple):
    """All that changes from step to step, or placeholders or shardings of it, without the base."""

    step: Any
    trainable: PyTree
    optimizer: optax.OptState


def state_shardings(
    optimizer: optax.GradientTransformation, trainable: PyTree, mesh: Mesh
) -> TrainState:
    """Return the shardings of a state: weights keep theirs, moments have those of the weights."""
    return TrainState(
        NamedSharding(mesh, PartitionSpec()),
        jax.tree.map(lambda x: x.sharding, trainable),
        optimizer_shardings(optimizer, trainable, mesh),
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainStep:
    """The parts of a step that never change.

    Attributes:
        shardings: sharding of each part of the state, the same before and after a step.
        loss_function: loss and metrics from the vectors of each column; see `train.losses`.
        shards: number of shards of a batch along data.
        chunks: number of parts that the rows are encoded in, with memory for one.
        stochastic: whether the model has dropout, so that a step needs keys.
        weights: of a layer's largest matrix, for the compiler's options.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    shardings: TrainState
    loss_function: LossFunction
    shards: int = 1
    chunks: int = 1
    remat: Remat = "none"
    stochastic: bool = False
    weights: int = 0

    def init(self, trainable: PyTree) -> TrainState:
        """Return the state before the first step."""
        return jax.jit(self._first, out_shardings=self.shardings)(trainable)

    def abstract_state(self, trainable: PyTree) -> TrainState:
        """Return placeholders of the state with their shardings."""

        def placeholder(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(placeholder, jax.eval_shape(self._first, trainable), self.shardings)

    def _first(self, trainable: PyTree) -> TrainState:
        return TrainState(jnp.int32(0), trainable, self.optimizer.init(trainable))

    @cached_property
    def step(self) -> PlatformJit:
        """The jitted step, `(state, frozen, batch, prefix_C, key) -> (state, metrics)`.

        A step donates its state. Metrics are those before the update; `finite_B` says for every
        triplet, in the order as read, whether its vectors are finite.
        """
        return PlatformJit(
            self._step,
            lambda *_, **__: self.weights,
            donate_argnums=0,
            out_shardings=(self.shardings, None),
        )

    def _step(
        self,
        state: TrainState,
        frozen: PyTree,
        batch: Any,  # what `loss` takes
        prefix_C: Int[Array, "C"],
        key: Key[Array, ""],
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(key, state.step) if self.stochastic else None
        evaluate = jax.value_and_grad(self.loss, has_aux=True)
        (loss, others), grads = evaluate(state.trainable, frozen, batch, prefix_C, step_key)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **others}
        return TrainState(state.step + 1, trainable, optimizer), metrics

    def loss(
        self,
        trainable: PyTree,
        frozen: PyTree,
        batch: TrainBatch,
        prefix_C: Int[Array, "C"] | Int[np.ndarray, "C"],
        key: Key[Array, ""] | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of a batch as a function of the trainable weights, and other metrics."""
        model = nnx.merge(self.graph, trainable, frozen)
        # The gradients of several chunks are summed in float32.
        dtype = model.dtype if self.chunks == 1 else jnp.float32
        model = nnx.merge(self.graph, gathered_factors(trainable, dtype), frozen)
        z_B3D = self.embed(model, batch, prefix_C, key)
        with jax.named_scope("loss"):
            columns = (z_B3D[:, n] for n in range(z_B3D.shape[1]))
            loss, others = self.loss_function(*columns, **batch.needs)
        check_metrics(others)
        finite_B = jnp.isfinite(z_B3D).all(axis=(1, 2))
        finite_B = jnp.empty_like(finite_B).at[batch.number_B].set(finite_B)
        return loss, {**others, "finite_B": finite_B}

    def embed(
        self,
        model: Decoder,
        batch: TrainBatch,
        prefix_C: Int[Array, "C"] | Int[np.ndarray, "C"],
        key: jax.Array | None,
    ) -> Float[Array, "B 3 D"] | Float[Array, "B 2 D"]:
        """Return the vectors of every triplet's columns; the shared prefix is computed once."""
        C = len(prefix_C)
        prefix_keys, keys = (None, None) if key is None else _keys(key, batch, C)
        rows, cache, in_rows = batch.rows, None, 0
        if select.prefix_in_rows(C):
            rows, keys, in_rows = with_head(rows, prefix_C), _joined(prefix_keys, keys), C
        elif C:
            cache = model.prefill(prefix_C, prefix_keys)
        run = partial(model, remat=self.remat, prefix_tokens=in_rows)
        encode = in_chunks(run, self.chunks)
        return _from_own_shard(encode(rows, cache, keys), batch.slot_B3, self.shards)


def _from_own_shard(z_BSD: jax.Array, slot_B3: jax.Array, shards: int) -> jax.Array:
    """Take the vectors at these slots, `[B, 3, D]`; every shard has its own in its own rows."""
    B, D = len(slot_B3), z_BSD.shape[-1]
    slot_shards = slot_B3.reshape(shards, -1, 1)
    return jnp.take_along_axis(z_BSD.reshape(shards, -1, D), slot_shards, axis=1).reshape(B, -1, D)


def gathered_factors(trainable: PyTree, dtype: Any) -> PyTree:
    """Return low-rank factors in the layout and dtype they are used in, for all layers.

    The barrier keeps XLA from moving the gathering into the loop over layers, where it would gather
    the factors of all layers in every iteration.
    """

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, nn.Lora):
            return leaf
        factor = gathered(leaf.get_value().astype(dtype), leaf.dims)
        return leaf.replace(jax.lax.optimization_barrier(factor))

    return jax.tree.map(gather, trainable, is_leaf=lambda x: isinstance(x, nn.Lora))


def with_head(rows: Rows, prefix_C: Int[Array, "C"] | Int[np.ndarray, "C"]) -> Rows:
    """Put the prefix at the head of every packed row; its tokens count as one sentence from 0."""
    assert rows.start_BT is not None  # the rows are packed
    B, C = len(rows.ids_BT), len(prefix_C)
    ids_BC = jnp.broadcast_to(prefix_C, (B, C)).astype(rows.ids_BT.dtype)
    start_BC = jnp.full((B, C), C, rows.start_BT.dtype)
    return Rows(
        jnp.concatenate([ids_BC, rows.ids_BT], axis=1),
        rows.last_BS + C,
        jnp.concatenate([start_BC, rows.start_BT + C], axis=1),
    )


def _joined(prefix: dropout.Keys | None, rows: dropout.Keys | None) -> dropout.Keys | None:
    """Return the keys of rows with the prefix at their head: those of the prefix in every row."""
    if rows is None:
        return None

    def join(word_1C: jax.Array, word_BT: jax.Array) -> jax.Array:
        repeated = jnp.broadcast_to(word_1C, (len(word_BT), word_1C.shape[1]))
        return jnp.concatenate([repeated, word_BT], axis=1)

    return jax.tree.map(join, prefix, rows)


def _keys(key: jax.Array, batch: TrainBatch, prefix: int) -> tuple[dropout.Keys, dropout.Keys]:
    """Return one key for every token of the prefix, and one for every token of the rows."""
    prefix_key, row_key = jax.random.split(key)
    assert batch.rows.start_BT is not None  # the rows are packed
    position_BC = jnp.arange(prefix)[None]
    position_BT = jnp.arange(batch.sentence_BT.shape[1]) - batch.rows.start_BT
    return (
        dropout.token_keys(prefix_key, jnp.zeros_like(position_BC), position_BC),
        dropout.token_keys(row_key, batch.sentence_BT, position_BT),
    )
