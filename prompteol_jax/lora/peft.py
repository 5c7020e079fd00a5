"""PEFT folders: adapters in the form that peft writes and loads, read strictly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jax.sharding import Mesh

from prompteol_jax import models
from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.lora import lora as adapters
from prompteol_jax.models import build
from prompteol_jax.models.config import Fields, label, shown
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.storage.json_files import read_object
from prompteol_jax.weights import load, safetensors, torch_bin
from prompteol_jax.weights.folder import write_weights
from prompteol_jax.weights.mapping import TensorMap, expand, file_shape, own_part

ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")


def save_adapter(model: Decoder, config: models.Config, folder: Path, *, base: str) -> None:
    """Write the updates as a PEFT folder that `PeftModel.from_pretrained` loads.

    Args:
        base: name or folder of the base model, for PEFT's own use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lora = adapters.lora_config(model, config)
    fused = adapters.fused_layers(model, config, lora.targets)
    arrays = {path: leaf for path, leaf in build.leaves(model).items() if ".lora." in path}
    write_weights(
        folder,
        arrays,
        adapters.factor_table(model, config, lora.targets, blocks=True),
        {**config.sizes, "R": lora.rank, "L": model.depth},
        dtype="float32",
        rename=lambda name: f"base_model.model.model.{name}",
        stem="adapter_model",
    )
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets or ()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {name: parts * lora.rank for name, parts in fused.items()},
        "alpha_pattern": {name: parts * lora.alpha for name, parts in fused.items()},
    }
    text = json.dumps(fields, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def load_adapter(
    model: Decoder, config: models.Config, folder: Path, mesh: Mesh, *, dropout: float | None = None
) -> Decoder:
    """Put a PEFT adapter on a model.

    Args:
        dropout: rate for the updates' inputs; None for the rate in the file.
    Raises: NotFound for a folder without an adapter; UserError for a kind of adapter that
        is not supported; WeightMismatch where it was made for another model.
    """
    lora = read_adapter_config(folder)
    if dropout is not None:
        lora = dataclasses.replace(lora, dropout=dropout)
    # A model that ends at an inner layer lacks some of what the adapter was made for.
    whole = build.abstract_decoder(config, mesh, dtype=model.dtype)
    lora = dataclasses.replace(lora, targets=_known_targets(folder, lora.targets, config, whole))
    tensors = _open_adapter(folder)
    _check_embedding(folder, tensors, model, config)
    if lora.targets == ():
        return model
    model = adapters.attach(model, config, lora, mesh)
    empty = {path: leaf for path, leaf in build.leaves(model).items() if ".lora." in path}
    blocks = _has_blocks(folder, lora, adapters.fused_layers(whole, config, lora.targets))
    table = adapters.factor_table(model, config, lora.targets, blocks=blocks)
    full = adapters.factor_table(whole, config, lora.targets, blocks=blocks)
    sizes = {**config.sizes, "R": lora.rank}
    if blocks:
        _check_blocks(folder, tensors, full, sizes)
    arrays = load.read_weights(
        tensors,
        table,
        empty,
        sizes,
        layers=model.depth,
        where=f"the adapter {folder}",
        ignore=[
            _HEAD,
            f".*{_EMBEDDING}",
            *(re.escape(row.source) for row in full if row not in table),
        ],
    )
    return build.fill(model, build.leaves(model) | arrays)


def _has_blocks(folder: Path, lora: adapters.LoraConfig, fused: Mapping[str, int]) -> bool:
    """Return whether each layer of a tensor that holds several has ranks to itself."""
    expected = {name: parts * lora.rank for name, parts in fused.items()}
    if lora.block_ranks and dict(lora.block_ranks) != expected:
        raise UserError(
            f"{folder}: rank_pattern = {shown(dict(lora.block_ranks))} is not supported for this "
            f"model; supported: {expected or 'none'}"
        )
    return bool(lora.block_ranks)


def _check_blocks(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    table: Sequence[TensorMap],
    sizes: Mapping[str, int],
) -> None:
    """Refuse factors that are not zero where a rank of one layer would change another one."""
    inside: dict[str, int] = {}
    for names, _, dims in expand(table, sizes["L"]).values():
        part = own_part(dims, sizes)
        for name in names:
            if name in tensors and tensors[name].shape == file_shape(dims, sizes):
                count = int(np.count_nonzero(tensors[name][part]))
                inside[name] = inside.get(name, 0) + count
    mixed = [name for name, count in inside.items() if count < np.count_nonzero(tensors[name])]
    if mixed:
        raise UserError(
            f"{folder}: {mixed[0]} mixes the ranks of the layers that are fused in one tensor, "
            "which is not supported; merge the adapter into its base with peft's merge_and_unload"
        )


def adapts_head(folder: Path) -> bool:
    """Whether an adapter changes the LM head, which no vector depends on, but `words` does.

    Raises: as `load_adapter`.
    """
    return any(re.fullmatch(_HEAD, name) for name in _open_adapter(folder))


def _known_targets(
    folder: Path, targets: tuple[str, ...] | None, config: models.Config, whole: Decoder
) -> tuple[str, ...] | None:
    """The targets but the LM head, all of which the model has."""
    known = {
        row.source.removesuffix(".weight").rsplit(".", 1)[-1]
        for row in build.weight_table(config, whole)
    }
    inner = None if targets is None else tuple(t for t in targets if t != "lm_head")
    strange = [t for t in inner or () if t.rsplit(".", 1)[-1] not in known]
    if strange:
        raise UserError(
            f"{folder} adapts {strange}, which a {config.family} model does not have: it was made "
            "for another family"
        )
    return inner


def _check_embedding(
    folder: Path, tensors: Mapping[str, np.ndarray], model: Decoder, config: models.Config
) -> None:
    """Refuse an adapter that replaces the word embedding, as peft stores it after a resize.

    Peft also stores the base's own embedding where `lm_head` is adapted: equal numbers pass.
    """
    (target,) = {
        row.target for row in build.weight_table(config, model) if row.source.endswith(_EMBEDDING)
    }
    leaf = build.leaves(model)[target]
    for name, tensor in tensors.items():
        if not name.endswith(_EMBEDDING):
            continue
        same = tensor.shape == leaf.shape and all(
            np.array_equal(tensor[shard.index].astype(leaf.dtype), shard.data)
            for shard in leaf.addressable_shards
        )
        if not same:
            raise UserError(
                f"{folder} brings an embedding of its own ({name}, shape {tensor.shape}; the "
                f"base's is {leaf.shape}). Merge it into its base with peft's merge_and_unload, "
                "and load the result."
            )


def _open_adapter(folder: Path) -> dict[str, np.ndarray]:
    for name, opener in zip(
        ADAPTER_FILES, (safetensors.open_safetensors, torch_bin.open_bin), strict=True
    ):
        if (folder / name).is_file():
            tensors = opener(folder / name)
            break
    else:
        raise NotFound(f"{folder} holds neither {ADAPTER_FILES[0]} nor {ADAPTER_FILES[1]}")
    return {_plain(name): tensor for name, tensor in tensors.items()}


def _plain(name: str) -> str:
    """Undo the wrappings of PEFT: `base_model.model.`, the causal model's `model.`, `.default`."""
    name = name.removeprefix("base_model.model.").removeprefix("model.")
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


# The LM head in a file: its factors, or the head itself, which peft stores after a resize.
_HEAD: Final = r"lm_head\.(lora_[AB]\.|base_layer\.)?weight"
_EMBEDDING: Final = "embed_tokens.weight"
# What `read_adapter_config` reads, and fields that cannot change an output.
_READ: Final = frozenset(
    "peft_type r lora_alpha lora_dropout target_modules use_rslora init_lora_weights rank_pattern "
    "alpha_pattern".split()
)
_HARMLESS: Final = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying "
    "eva_config inference_mode loftq_config megatron_core peft_version qalora_group_size revision "
    "runtime_config task_type".split()
)
_NEUTRAL: Final = (None, False, {}, [], "none")
_MOST_RANK: Final = 65536
_PLAIN_STARTS: Final = (None, True, False, "gaussian", "orthogonal")


def read_adapter_config(folder: Path) -> adapters.LoraConfig:
    """Read PEFT's `adapter_config.json`.

    Raises: NotFound without one; UserError that names everything that is not plain LoRA.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no adapter_config.json: it is no adapter folder")
    fields = read_object(path)
    f = Fields({k: v for k, v in fields.items() if k in _READ}, str(path))
    if fields.get("peft_type") != "LORA":
        f.wrong(f"peft_type = {shown(fields.get('peft_type'))}, supported: 'LORA'")
    f.ignore("peft_type")
    config: dict[str, Any] = dict(
        rank=f.integer("r", most=_MOST_RANK),
        alpha=f.number("lora_alpha"),
        targets=_targets(f),
        dropout=f.number("lora_dropout", 0.0),
        rslora=f.flag("use_rslora", False),
    )
    config["block_ranks"] = _block_ranks(f, config)
    if config["dropout"] >= 1:
        f.wrong(f"lora_dropout = {config['dropout']} is not below 1")
    start = f.take("init_lora_weights", True)
    if start not in _PLAIN_STARTS:  # others change the base as well
        f.wrong(f"init_lora_weights = {shown(start)} is not supported")
    for name, value in fields.items():
        if name not in _READ | _HARMLESS and not _is_neutral(value):
            f.wrong(f"{label(name)} = {shown(value)} is not supported")
    f.finish()
    return adapters.LoraConfig(**config)


def _block_ranks(f: Fields, config: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Read `rank_pattern`, where every scale stays alpha / r."""
    ranks, alphas = f.fields("rank_pattern"), f.fields("alpha_pattern")
    if not ranks and not alphas:
        return ()
    same_scale = not config["rslora"] and all(
        type(rank) is int
        and 0 < rank <= _MOST_RANK
        and alphas.get(name) == rank / config["rank"] * config["alpha"]
        for name, rank in ranks.items()
    )
    if set(ranks) != set(alphas) or not same_scale:
        f.wrong(
            f"rank_pattern = {shown(ranks)} with alpha_pattern = {shown(alphas)} is not supported"
        )
    return tuple(sorted(ranks.items())) if same_scale else ()


def _is_neutral(value: Any) -> bool:
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL)


def _targets(f: Fields) -> tuple[str, ...] | None:
    """The names of `target_modules`; None for every linear layer."""
    targets = f.take("target_modules")
    if targets == "all-linear":
        return None
    if type(targets) is str:
        f.wrong(f"target_modules = {shown(targets)} is a pattern; supported: a list of names")
    elif targets is not None:
        if type(targets) is list and targets and all(type(name) is str for name in targets):
            return _every_layer(targets)
        f.wrong(f"target_modules = {shown(targets)} is not a list of names")
    return ()


def _every_layer(targets: list[str]) -> tuple[str, ...]:
    """Names as in the weight table; peft may list `model.decoder.layers.0.fc1` and so on.

    One that is adapted in some layers only then lacks the factors of the others, which is an error.
    """
    names = (re.sub(r"(^|\.)\d+\.", r"\1{l}.", name) for name in targets)
    return tuple(dict.fromkeys(name.removeprefix("model.") for name in names))
