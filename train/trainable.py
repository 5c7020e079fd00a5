"""A model made ready to learn: what trains, what is frozen, and how weights leave and enter it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from prompteol_jax import distributed, nn
from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora import peft
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained.load import Pretrained, find_adapter, load_pretrained, save_pretrained
from prompteol_jax.storage import paths
from train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A pretrained model, split into what the optimizer changes and what it leaves alone."""

    pretrained: Pretrained
    graph: nnx.GraphDef
    start: PyTree
    frozen: PyTree
    full: bool

    def decoder(self, trainable: PyTree) -> Decoder:
        """The model with these weights."""
        return nnx.merge(self.graph, trainable, self.frozen)

    def export(self, trainable: PyTree, run: Path, base: str) -> Path:
        """Write the weights into the run: a PEFT adapter, or a whole model after --full."""
        if jax.process_count() > 1:
            trainable = jax.tree.map(lambda x: jnp.asarray(distributed.to_host(x)), trainable)
        folder = exported_folder(run, full=self.full)
        if distributed.is_primary():
            decoder = self.decoder(trainable)
            if self.full:
                save_pretrained(self.pretrained, decoder, folder, dtype="float32")
            else:
                peft.save_adapter(decoder, self.pretrained.config, folder, base=base)
        return folder

    def exported(self, run: Any) -> Pretrained:
        """The model with the weights that were last written into the run."""
        model, folder = self.pretrained, paths.local_copy(exported_folder(run, full=self.full))
        if self.full:
            return load_pretrained(str(folder), model.mesh, dtype=model.decoder.dtype)
        decoder = peft.load_adapter(model.decoder, model.config, folder, model.mesh)
        return dataclasses.replace(model, decoder=decoder, adapter=folder)


def exported_folder(run: Any, *, full: bool) -> Any:
    """Where a run's weights are written."""
    return run / ("model" if full else "adapter")


def make_trainable(config: TrainConfig, mesh: Mesh) -> Trainable:
    """Load the model and give it a fresh adapter, the one asked for, or none where all trains.

    What trains is float32, whatever the dtype of activations and frozen weights.
    """
    dtype = jnp.dtype(config.dtype)
    adapter = None if config.adapter is None else find_adapter(config.adapter)
    if adapter is not None:
        peft.read_adapter_config(adapter)
    pretrained = load_pretrained(
        config.model,
        mesh,
        dtype=dtype,
        weight_dtype=jnp.float32 if config.full else dtype,
        quantize=config.quantize,
        base_dropout=config.base_dropout,
    )
    decoder = pretrained.decoder
    if adapter is not None:
        decoder = peft.load_adapter(
            decoder, pretrained.config, adapter, mesh, dropout=config.dropout
        )
    elif not config.full:
        lora = adapters.LoraConfig(rank=config.rank, alpha=config.alpha, dropout=config.dropout)
        key = jax.random.key(config.seed)
        decoder = adapters.add_lora(decoder, pretrained.config, lora, mesh, key)
    graph, start, frozen = nnx.split(decoder, nn.Weight if config.full else nn.Lora, ...)
    return Trainable(pretrained, graph, start, frozen, config.full)
