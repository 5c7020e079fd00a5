"""Decoders of any family, from and to Hugging Face folders."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from prompteol_jax import axes, nn
from prompteol_jax.errors import NotFound, UserError, nearest
from prompteol_jax.models import FAMILIES, Config
from prompteol_jax.models.config import shown
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.quant import formats as quant
from prompteol_jax.storage.json_files import read_object
from prompteol_jax.weights import load
from prompteol_jax.weights.folder import open_tensors, write_weights
from prompteol_jax.weights.mapping import TensorMap

HEAD: Final = TensorMap("lm_head.weight", "head", "V D -> V D")


class Identity(nnx.Module):
    """Stands for the final norm where an inner layer is asked for."""

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD


def read_config(folder: Path) -> Config:
    """Read `config.json` of a Hugging Face folder.

    Raises: NotFound without one; UserError for another family or any field that is not
        understood, by name.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no config.json: it is not a model folder")
    fields = read_object(path)
    name = fields.get("model_type")
    if type(name) is not str or name not in FAMILIES:
        raise UserError(
            f"{path}: model_type = {shown(name)} is not supported{nearest(str(name), FAMILIES)}; "
            f"supported: {sorted(FAMILIES)}"
        )
    try:
        return FAMILIES[name][0].from_hf(fields)
    except UserError as error:
        raise UserError(f"{folder}/{error}") from error


def resolve_layer(layer: int | None, L: int) -> int | None:
    """Count the blocks to run for `hidden_states[layer]`; None for all and the final norm.

    Raises: UserError where there is no such layer; the embedding itself, layer 0, is none.
    """
    if layer is None:
        return None
    blocks = layer + L + 1 if layer < 0 else layer
    if not 1 <= blocks <= L:
        raise UserError(f"layer {layer} does not exist: allowed are 1 to {L}, or -1 to {-L}")
    return None if blocks == L else blocks


def abstract_decoder(
    config: Config,
    mesh: Mesh,
    *,
    dtype: Any,
    weight_dtype: Any = None,
    quantize: quant.Kind | None = None,
    layers: int | None = None,
    fsdp: bool = False,
) -> Decoder:
    """Describe a decoder: placeholders with shape, dtype and sharding in the place of arrays.

    Args:
        dtype: of activations; weight_dtype: of matrices, `dtype` by default.
        quantize: of the linear layers' matrices; embeddings, norms and biases stay as they are.
        layers: blocks to keep, for the raw hidden state behind them; None for the whole model.
        fsdp: shard matrices over data too; each layer gathers its own on use.
    """
    matrix_dtype = weight_dtype or dtype
    make = nn.Placeholders(config.sizes, matrix_dtype, mesh, quantize=quantize, fsdp=fsdp)
    _, family = FAMILIES[config.family]
    depth = config.L if layers is None else layers
    return Decoder(
        embedding=family.make_embedding(config, make),
        blocks=family.Block(config, make.stacked(depth - 1)),
        last=family.Block(config, make),
        final_norm=Identity() if layers is not None else family.make_final_norm(config, make),
        layers=config.layers(depth),
        dtype=dtype,
        fsdp=fsdp,
    )


def truncate(model: Decoder, depth: int) -> Decoder:
    """Return the decoder that ends, raw, after the first `depth` blocks; they are copied."""
    assert model.blocks is not None and depth < model.depth  # a whole decoder
    return Decoder(
        embedding=model.embedding,
        blocks=jax.tree.map(lambda stack: stack[: depth - 1], model.blocks),
        last=jax.tree.map(lambda stack: stack[depth - 1], model.blocks),
        final_norm=Identity(),
        layers=dataclasses.replace(model.layers, depth=depth),
        dtype=model.dtype,
        fsdp=model.fsdp,
    )


def leaves(model: nnx.Module) -> dict[str, Any]:
    """The arrays, or their placeholders, of a module by dotted path; a quantized weight is one."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def fill(model: Decoder, arrays: Mapping[str, Any]) -> Decoder:
    """Put arrays in the place of the placeholders of the same paths."""
    graph, state = nnx.split(model)
    flat = [
        (path, leaf.replace(arrays[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def load_decoder(
    folder: Path,
    config: Config,
    mesh: Mesh,
    *,
    dtype: Any,
    weight_dtype: Any = None,
    quantize: quant.Kind | None = None,
    layers: int | None = None,
    fsdp: bool = False,
) -> Decoder:
    """Load a Hugging Face folder onto a mesh, each process reading what it holds.

    Raises: WeightMismatch that lists every missing, unexpected and misshapen tensor.
    """
    model = abstract_decoder(
        config,
        mesh,
        dtype=dtype,
        weight_dtype=weight_dtype,
        quantize=quantize,
        layers=layers,
        fsdp=fsdp,
    )
    wanted, unread = table_for_layers(config, mesh, layers)
    _, family = FAMILIES[config.family]
    arrays = load.read_weights(
        open_tensors(folder),
        wanted,
        leaves(model),
        config.sizes,
        layers=layers or config.L,
        where=str(folder),
        ignore=(*family.IGNORED, *(re.escape(row.source) for row in unread)),
        alias=family.ALIAS if config.tied else {},
    )
    return fill(model, arrays)


def table_for_layers(
    config: Config, mesh: Mesh, layers: int | None
) -> tuple[tuple[TensorMap, ...], tuple[TensorMap, ...]]:
    """The rows that a model of so many layers reads, and those that only the whole model reads."""
    whole = weight_table(config, abstract_decoder(config, mesh, dtype="float32"))
    cut = abstract_decoder(config, mesh, dtype="float32", layers=layers)
    wanted = weight_table(config, cut)
    return wanted, tuple(row for row in whole if row not in wanted)


def weight_table(config: Config, model: Decoder) -> tuple[TensorMap, ...]:
    """The rows of the family's weight table whose weights this model has."""
    _, family = FAMILIES[config.family]
    present = leaves(model)
    return tuple(
        row for row in family.WEIGHTS if re.sub(r"^block\.", "last.", row.target) in present
    )


def save_decoder(
    folder: Path, config: Config, model: Decoder, *, dtype: str, head: jax.Array | None = None
) -> None:
    """Write a Hugging Face folder that transformers loads: config.json and safetensors.

    Args:
        head: the language-model head, where it is not tied to the embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays, table = leaves(model), weight_table(config, model)
    if head is not None:
        arrays, table = arrays | {HEAD.target: head}, (*table, HEAD)
    write_weights(
        folder,
        arrays,
        table,
        config.sizes,
        dtype=dtype,
        rename=lambda name: name if name == HEAD.source else f"model.{name}",
    )
    fields = {**config.to_hf(), "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def check_tied_head(folder: Path, config: Config) -> None:
    """Refuse to take the embedding for the LM head where the checkpoint stores another head.

    Raises: UserError where the config says that they are one, and their numbers differ.
    """
    if not config.tied:
        return
    _, family = FAMILIES[config.family]
    tensors = open_tensors(folder)
    for embedding, head in family.ALIAS.items():
        both = embedding in tensors and head in tensors
        if both and not np.array_equal(tensors[embedding], tensors[head]):
            raise UserError(
                f"{folder}: config.json says tie_word_embeddings = true, but {head} is not "
                f"{embedding}. Remove {head} from the weights, or set the field to false."
            )


def read_head(folder: Path, config: Config, mesh: Mesh, *, dtype: Any) -> jax.Array:
    """Read a language-model head that is not tied to the embedding."""
    shape = (config.V, config.D)
    place = axes.sharding("VD", shape, mesh)
    leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    tensors = open_tensors(folder)
    head = {name: tensor for name, tensor in tensors.items() if name == HEAD.source}
    read = load.read_weights(head, (HEAD,), {HEAD.target: leaf}, config.sizes, layers=config.L)
    head_VD = read[HEAD.target]
    assert isinstance(head_VD, jax.Array)  # the leaf is not quantized
    return head_VD


def replace_dropout(config: Config, rate: float | None) -> Config:
    """Set the model's own dropout of training; None keeps the checkpoint's.

    Raises: UserError where the family has none to set.
    """
    if rate is None:
        return config
    changed = config.with_dropout(rate)
    if changed.dropout != rate:
        raise UserError(
            f"--base-dropout {rate}: a model of the family {config.family} has no dropout of its "
            "own; leave the flag out"
        )
    return changed
