"""A model divided into what trains and what is frozen, and how its weights leave a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from prompteol_jax import distributed, nn
from prompteol_jax.errors import UserError
from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora import peft
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained.load import Pretrained, find_adapter, load_pretrained, save_pretrained
from prompteol_jax.quant import formats as quant
from prompteol_jax.storage import paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a run trains.

    Attributes:
        adapter: name of the adapter to start from; None for a fresh one, as `lora` says.
        full: train every weight instead of an adapter.
        dtype: dtype of activations and frozen weights; what trains is always float32.
        base_dropout: dropout of the model itself, instead of its config's.
        seed: seed of a fresh adapter.
        fsdp: shard matrices over data too.
    """

    model: str
    adapter: str | None
    full: bool
    lora: adapters.LoraConfig
    dtype: str
    quantize: quant.Kind | None
    base_dropout: float | None
    seed: int
    fsdp: bool = False


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A pretrained model, divided into what the optimizer changes and what it does not."""

    pretrained: Pretrained
    graph: nnx.GraphDef
    start: PyTree
    frozen: PyTree
    full: bool
    stochastic: bool

    def decoder(self, trainable: PyTree) -> Decoder:
        """Return the model with these weights."""
        return nnx.merge(self.graph, trainable, self.frozen)

    def export(self, trainable: PyTree, run: Path) -> Path:
        """Write the weights into the run: a PEFT adapter, or a whole model after --full."""
        if jax.process_count() > 1:
            trainable = jax.tree.map(lambda x: jnp.asarray(distributed.to_host(x)), trainable)
        model, folder = self.pretrained, exported_folder(run, full=self.full)
        if distributed.is_primary():
            decoder = self.decoder(trainable)
            if self.full:
                save_pretrained(model, decoder, folder, dtype="float32")
            else:
                peft.save_adapter(decoder, model.config, folder, base=model.name)
        return folder

    def exported(self, run: Any) -> Pretrained:
        """Return the model with the weights that were last written into the run."""
        model, folder = self.pretrained, paths.local_copy(exported_folder(run, full=self.full))
        if self.full:
            how: dict[str, Any] = {"dtype": model.decoder.dtype, "fsdp": model.fsdp}
            return load_pretrained(str(folder), model.mesh, weight_dtype=jnp.float32, **how)
        decoder = peft.load_adapter(model.decoder, model.config, folder, model.mesh)
        return dataclasses.replace(model, decoder=decoder, adapter=folder)


def exported_folder(run: Any, *, full: bool) -> Any:
    """Return where a run's weights are written."""
    return run / ("model" if full else "adapter")


def make_trainable(settings: ModelSettings, mesh: Mesh) -> Trainable:
    """Load the model and give it a fresh adapter, the one asked for, or none where all trains."""
    dtype, full = jnp.dtype(settings.dtype), settings.full
    adapter = None if settings.adapter is None else find_adapter(settings.adapter)
    if adapter is not None:
        peft.read_adapter_config(adapter)
    pretrained = load_pretrained(
        settings.model,
        mesh,
        dtype=dtype,
        weight_dtype=jnp.float32 if full else dtype,
        quantize=settings.quantize,
        base_dropout=settings.base_dropout,
        fsdp=settings.fsdp,
        copies=4 if full else 1,  # the weights, gradients and two moments
    )
    decoder, lora = pretrained.decoder, settings.lora
    if adapter is not None:
        decoder = peft.load_adapter(decoder, pretrained.config, adapter, mesh, dropout=lora.dropout)
    elif not full:
        _check_targets(pretrained, lora.targets)
        key = jax.random.key(settings.seed)
        decoder = adapters.add_lora(decoder, pretrained.config, lora, mesh, key)
    graph, start, frozen = nnx.split(decoder, nn.Weight if full else nn.Lora, ...)
    stochastic = pretrained.config.dropout > 0 or (not full and lora.dropout > 0)
    return Trainable(pretrained, graph, start, frozen, full, stochastic)


def _check_targets(pretrained: Pretrained, targets: Sequence[str] | None) -> None:
    """Refuse names of layers that the model does not have."""
    rows = adapters.factor_table(pretrained.decoder, pretrained.config, None)
    known = {row.source.split(".lora_")[0].rsplit(".", 1)[-1] for row in rows}
    strange = [name for name in targets or () if name not in known]
    if strange:
        raise UserError(
            f"--lora-targets {' '.join(strange)}: a {pretrained.config.family} model has the "
            f"linear layers {', '.join(sorted(known))}"
        )
