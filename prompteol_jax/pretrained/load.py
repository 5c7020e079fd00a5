"""A model by name: config, tokenizer and weights on a mesh, with an adapter if asked for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prompteol_jax import models
from prompteol_jax.errors import UserError
from prompteol_jax.lora import peft
from prompteol_jax.mesh import check_mesh
from prompteol_jax.methods.library import check_trained_with
from prompteol_jax.methods.record import Method
from prompteol_jax.models import build, memory, tiny
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained import hub, source
from prompteol_jax.quant import formats as quant
from prompteol_jax.runtime import device_memory, keep_compiled
from prompteol_jax.storage import paths
from prompteol_jax.text.tokenizer import Tokenizer

DTYPES: Final = ("float32", "bfloat16")
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A decoder with all that belongs to it.

    Attributes:
        folder: folder of its files; None for `tiny`, which is made in code.
        adapter: the folder of the adapter on it, if any.
        layer: the inner layer it ends at, counted from 1; None for the whole model.
        quantize: kind of the linear layers' matrices; None where they are in its dtype.
        fsdp: whether those are sharded over data too.
    """

    name: str
    folder: Path | None
    config: models.Config
    tokenizer: Tokenizer
    decoder: Decoder
    mesh: Mesh
    adapter: Path | None = None
    layer: int | None = None
    quantize: quant.Kind | None = None
    fsdp: bool = False


def check_precision(dtype: str, quantize: str | None) -> None:
    """Refuse a dtype or a kind of quantized weights that models are not loaded in.

    Raises: UserError with those that they are.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
    if quantize not in (None, *quant.KINDS):
        raise UserError(
            f"quantize {quantize!r} is not supported; supported: {', '.join(quant.KINDS)}"
        )


def load_pretrained(
    name: str,
    mesh: Mesh,
    *,
    dtype: Any,
    weight_dtype: Any = None,
    quantize: quant.Kind | None = None,
    adapter: str | Path | None = None,
    method: Method | None = None,
    layer: int | None = None,
    base_dropout: float | None = None,
    fsdp: bool = False,
    copies: int = 1,
) -> Pretrained:
    """Load `tiny`, a Hugging Face folder or a hub name onto a mesh.

    Args:
        dtype: of activations; weight_dtype: of matrices, `dtype` by default.
        quantize: `nf4` or `int8`, for the matrices of linear layers.
        adapter: a PEFT folder or hub name, or the folder of a training run.
        method: the one that the adapter must have been trained with, if its folder says which.
        layer: run up to `hidden_states[layer]` only, which is then returned raw.
        base_dropout: the model's own dropout of training, instead of its config's.
        fsdp: shard matrices over data too; see `memory.choose_fsdp`.
        copies: arrays of the size of the weights that a device will hold.
    Raises: UserError, NotFound or OSError, before any weight is read, where an argument
        does not fit; WeightMismatch where the weights do not.
    """
    keep_compiled()
    adapter_folder = None if adapter is None else _checked_adapter(adapter, method)
    found = source.resolve(name)
    config = build.replace_dropout(found.config, base_dropout)
    found = dataclasses.replace(found, config=config)
    check_mesh(config.sizes, (mesh.shape["data"], mesh.shape["model"]))
    layers = build.resolve_layer(layer, config.L)
    tokenizer = found.tokenizer()
    how: dict[str, Any] = {"dtype": dtype, "weight_dtype": weight_dtype, "quantize": quantize}
    how["layers"] = layers
    fsdp = fsdp or memory.choose_fsdp(config, mesh, device_memory(), copies=copies, **how)
    decoder = found.decoder(mesh, fsdp=fsdp, **how)
    if adapter_folder is not None:
        decoder = peft.load_adapter(decoder, config, adapter_folder, mesh)
    first = (name, found.folder, config, tokenizer, decoder, mesh, adapter_folder)
    return Pretrained(*first, layers, quantize, fsdp)


def _checked_adapter(name: str | Path, method: Method | None) -> Path:
    """Find an adapter and refuse one that cannot be read or was trained with another method."""
    folder = find_adapter(name)
    if method is not None:
        check_trained_with(folder, method)
    peft.read_adapter_config(folder)
    return folder


def save_pretrained(pretrained: Pretrained, decoder: Decoder, folder: Path, *, dtype: str) -> None:
    """Write weights, config and tokenizer as a Hugging Face folder that transformers loads."""
    head = None
    if pretrained.folder is not None:
        build.check_tied_head(pretrained.folder, pretrained.config)
    if not pretrained.config.tied:
        assert pretrained.folder is not None  # only `tiny` has none, and its head is tied
        head = build.read_head(
            pretrained.folder, pretrained.config, pretrained.mesh, dtype=jnp.dtype(dtype)
        )
    build.save_decoder(folder, pretrained.config, decoder, dtype=dtype, head=head)
    save_tokenizer(pretrained, folder)


def read_lm_head(pretrained: Pretrained) -> jax.Array | None:
    """Read the LM head of a model; None where it is the word embedding.

    Raises: UserError where an adapter or the weights have another head than the config says.
    """
    folder, config = pretrained.folder, pretrained.config
    if pretrained.adapter is not None and peft.adapts_head(pretrained.adapter):
        raise UserError(f"{pretrained.adapter} adapts the LM head, which words do not support")
    if folder is None:
        return None
    build.check_tied_head(folder, config)
    if config.tied:
        return None
    return build.read_head(folder, config, pretrained.mesh, dtype=pretrained.decoder.dtype)


def save_tokenizer(pretrained: Pretrained, folder: Path) -> None:
    """Write the tokenizer's files, those of the model's folder where it has one."""
    if pretrained.folder is None:
        pretrained.tokenizer.backend.save(str(folder / "tokenizer.json"))
        fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tiny.BOS}
        text = json.dumps(fields, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        return
    for name in TOKENIZER_FILES:
        if (pretrained.folder / name).is_file():
            shutil.copyfile(pretrained.folder / name, folder / name)


def find_adapter(name: str | Path) -> Path:
    """Find an adapter by folder, training run or hub name."""
    given = paths.as_path(name)
    paths.check_bucket(given)
    for folder in (given, given / "adapter"):
        if (folder / "adapter_config.json").exists():
            return paths.local_copy(folder, depth=1)
    return hub.local_folder(name, kind="adapter")
