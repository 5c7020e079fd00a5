"""One training step: prefix, embeddings in chunks, loss over the global batch, update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree

from prompteol_jax import nn
from prompteol_jax.mesh import gathered
from prompteol_jax.models.decoder import Decoder, KVCache, Rows
from prompteol_jax.ops import dropout, platform
from prompteol_jax.ops.scan import Remat
from train.losses import contrastive_loss


class Batch(NamedTuple):
    """Packed sentences of a global batch of triplets or pairs, cut along data like the triplets.

    Attributes:
        sentence_BT: number of each token's sentence in the global batch, of which its dropout keys
            are made; whatever it is where no sentence is.
        place_B3: where the vectors of anchor, positive and hard negative (if any) come out of the
            flattened `[rows * S]` outputs of their own shard of data.
        number_B: of each triplet in the batch as it was read, from which it was shared out.
    """

    rows: Rows
    sentence_BT: Int[Array, "rows T"]
    place_B3: Int[Array, "B 3"] | Int[Array, "B 2"]
    number_B: Int[Array, "B"]


def abstract_batch(mesh: Mesh, rows: int, row_shape: tuple[int, int], triplets: int) -> Batch:
    """Placeholders of a batch, from which a step is compiled without data.

    Args:
        rows: of the whole batch; row_shape: tokens of a row, and sentences it holds at most.
        triplets: of the global batch, each with a hard negative.
    """

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, PartitionSpec("data"))
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)

    T, S = row_shape
    packed = Rows(ids(rows, T), ids(rows, S), ids(rows, T))
    return Batch(packed, ids(rows, T), ids(triplets, 3), ids(triplets))


class TrainState(NamedTuple):
    """All that changes from step to step, and nothing else: the frozen base is not in it."""

    step: Int[Array, ""]
    trainable: PyTree
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """The fixed parts of a step.

    Attributes:
        places: where each part of the state lies; it never moves, so a step is compiled once.
        shards: parts along data that a batch is cut into.
        chunks: parts that the rows are encoded in one after another, with memory for one.
        stochastic: the model has dropout, so a step needs keys.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    places: TrainState
    shards: int = 1
    chunks: int = 1
    remat: Remat = "none"
    stochastic: bool = False

    def init(self, trainable: PyTree) -> TrainState:
        """The state before the first step."""
        return jax.jit(self._first, out_shardings=self.places)(trainable)

    def abstract_state(self, trainable: PyTree) -> TrainState:
        """Placeholders of the state, where each part of it will lie."""

        def placed(x: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

        return jax.tree.map(placed, jax.eval_shape(self._first, trainable), self.places)

    def _first(self, trainable: PyTree) -> TrainState:
        return TrainState(jnp.int32(0), trainable, self.optimizer.init(trainable))

    def embed(
        self, model: Decoder, batch: Batch, prefix_C: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Vectors of the triplets, `[B, 3, D]`, the prefix computed once for all of them."""
        rows, cache, head = batch.rows, None, 0
        prefix_keys, keys = (None, None) if key is None else _keys(key, batch, len(prefix_C))
        if at_head(len(prefix_C), platform.current()):
            head = len(prefix_C)
            rows, keys = with_head(rows, prefix_C), _joined(prefix_keys, keys)
        elif len(prefix_C):
            cache = model.prefill(prefix_C, prefix_keys)
        encode = in_chunks(partial(model, remat=self.remat, head=head), self.chunks)
        z_BSD = encode(rows, cache, keys)
        # Every shard finds its own sentences in its own rows.
        D, B = z_BSD.shape[-1], len(batch.place_B3)
        z_XnD = z_BSD.reshape(self.shards, -1, D)
        place_Xm = batch.place_B3.reshape(self.shards, -1)
        return jnp.take_along_axis(z_XnD, place_Xm[..., None], axis=1).reshape(B, -1, D)

    @cached_property
    def step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        """The jitted step, `(state, frozen, batch, prefix_C, key) -> (state, metrics)`.

        The state that it is given is used up; metrics are those before the update, `finite_B`
        tells of every triplet, as they were read, whether its vectors are finite.
        """
        return jax.jit(self._step, donate_argnums=0, out_shardings=(self.places, None))

    def _step(
        self,
        state: TrainState,
        frozen: PyTree,
        batch: Batch,
        prefix_C: Int[Array, "C"],
        key: Key[Array, ""],
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step) if self.stochastic else None
        evaluate = jax.value_and_grad(self.loss, has_aux=True)
        (loss, aside), grads = evaluate(state.trainable, frozen, batch, prefix_C, key)
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **aside}
        return TrainState(state.step + 1, trainable, optimizer), metrics

    def loss(
        self,
        trainable: PyTree,
        frozen: PyTree,
        batch: Batch,
        prefix_C: Int[Array, "C"] | Int[np.ndarray, "C"],
        key: Key[Array, ""] | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of a batch as a function of what trains, and the other metrics that come with it."""
        model = nnx.merge(self.graph, trainable, frozen)
        # The gradients of several chunks are added up in float32.
        gathered = _gathered(trainable, model.dtype if self.chunks == 1 else jnp.float32)
        model = nnx.merge(self.graph, gathered, frozen)
        z_B3D = self.embed(model, batch, prefix_C, key)
        with jax.named_scope("loss"):
            loss, accuracy = contrastive_loss(*(z_B3D[:, role] for role in range(z_B3D.shape[1])))
        finite_B = jnp.isfinite(z_B3D).all(axis=(1, 2))
        finite_B = jnp.empty_like(finite_B).at[batch.number_B].set(finite_B)
        return loss, {"accuracy": accuracy, "finite_B": finite_B}


def _gathered(trainable: PyTree, dtype: Any) -> PyTree:
    """Low-rank factors in the layout and dtype they are used in, once and for all layers.

    The barrier keeps XLA from sinking the gathering into the loop over layers, where it would move
    the factors of all of them in every turn.
    """

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, nn.Lora):
            return leaf
        whole = gathered(leaf.get_value().astype(dtype), leaf.dims)
        return leaf.replace(jax.lax.optimization_barrier(whole))

    return jax.tree.map(gather, trainable, is_leaf=lambda x: isinstance(x, nn.Lora))


def state_places(
    optimizer: optax.GradientTransformation, trainable: PyTree, mesh: Mesh
) -> TrainState:
    """Shardings of a state: the optimizer's moments lie where their weights do, the rest whole."""
    whole = NamedSharding(mesh, PartitionSpec())
    layout = jax.tree.map(lambda x: x.sharding, trainable)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, trainable),
        layout,
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, layout, moments)


_SHORT: Final = 16


def at_head(C: int, platform: str) -> bool:
    """Say whether a prefix of C tokens goes to the head of every row, instead of a pass of its own.

    On a TPU a pass over few tokens takes as long as reading all weights, forward and backward.
    """
    return platform == "tpu" and 0 < C <= _SHORT


def with_head(rows: Rows, prefix_C: jax.Array) -> Rows:
    """Put the prefix at the head of every packed row; its tokens count as one sentence from 0."""
    B, C = len(rows.ids_BT), len(prefix_C)
    ids_BC = jnp.broadcast_to(prefix_C, (B, C)).astype(rows.ids_BT.dtype)
    start_BC = jnp.full((B, C), C, rows.start_BT.dtype)
    return Rows(
        jnp.concatenate([ids_BC, rows.ids_BT], axis=1),
        rows.last_BS + C,
        jnp.concatenate([start_BC, rows.start_BT + C], axis=1),
    )


def _joined(prefix: dropout.Keys | None, rows: dropout.Keys | None) -> dropout.Keys | None:
    """The keys of rows that have the prefix at their head: those of the prefix in every row."""
    if rows is None:
        return None

    def join(word_1C: jax.Array, word_BT: jax.Array) -> jax.Array:
        repeated = jnp.broadcast_to(word_1C, (len(word_BT), word_1C.shape[1]))
        return jnp.concatenate([repeated, word_BT], axis=1)

    return jax.tree.map(join, prefix, rows)


def _keys(key: jax.Array, batch: Batch, prefix: int) -> tuple[dropout.Keys, dropout.Keys]:
    """One key for every token of the prefix, and one for every token of the rows."""
    prefix_key, row_key = jax.random.split(key)
    place_BC = jnp.arange(prefix)[None]
    place_BT = jnp.arange(batch.sentence_BT.shape[1]) - batch.rows.start_BT
    return (
        dropout.token_keys(prefix_key, jnp.zeros_like(place_BC), place_BC),
        dropout.token_keys(row_key, batch.sentence_BT, place_BT),
    )


def in_chunks(
    encode: Callable[[Rows, KVCache | None, Any], jax.Array], chunks: int
) -> Callable[[Rows, KVCache | None, Any], jax.Array]:
    """Encode rows part by part, recomputing each in the backward pass: memory for one part.

    Chunks are strided, so that on a mesh every row stays on its device. Gradients are those of the
    whole batch.

    Source: Gao et al. 2021 (GradCache), here as a scan over a checkpointed function.
    """
    if chunks == 1:
        return encode

    def chunked(rows: Rows, cache: KVCache | None, keys: dropout.Keys | None) -> jax.Array:
        def cut(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(len(x) // chunks, chunks, *x.shape[1:]), 0, 1)

        @jax.checkpoint
        def part(xs: tuple[Rows, dropout.Keys | None]) -> jax.Array:
            return encode(xs[0], cache, xs[1])

        z_MbSD = jax.lax.map(part, jax.tree.map(cut, (rows, keys)))
        return jnp.swapaxes(z_MbSD, 0, 1).reshape(-1, *z_MbSD.shape[2:])

    return chunked


def make_optimizer(
    peak: float, steps: int, warmup_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW without decay behind a clip at norm 1, and its learning rate: up from 0, down to 0.

    Source: the defaults of Hugging Face's Trainer, which the released code leaves as they are.
    """
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    decay = optax.linear_schedule(peak, 0.0, max(1, steps - warmup_steps))
    schedule = optax.join_schedules([warmup, decay], [warmup_steps])
    adamw = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw), schedule
