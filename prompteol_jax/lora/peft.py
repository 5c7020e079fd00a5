"""PEFT folders: adapters in the form that peft writes and loads, read strictly."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Final

from jax.sharding import Mesh

from prompteol_jax import models
from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.lora import lora as adapters
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.weights import load, safetensors, torch_bin
from prompteol_jax.weights.folder import write_weights

ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")


def save_adapter(model: Decoder, config: models.Config, folder: Path, *, base: str) -> None:
    """Write the updates as a PEFT folder that `PeftModel.from_pretrained` loads.

    Args:
        base: name or folder of the base model, for PEFT's own use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lora = adapters.lora_config(model, config)
    arrays = {path: leaf for path, leaf in build.leaves(model).items() if ".lora." in path}
    write_weights(
        folder,
        arrays,
        adapters.factor_table(model, config, lora.targets),
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
    }
    text = json.dumps(fields, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def load_adapter(
    model: Decoder, config: models.Config, folder: Path, mesh: Mesh, *, dropout: float | None = None
) -> Decoder:
    """Put a PEFT adapter on a model.

    Args:
        dropout: of the updates' inputs, in the place of the file's own.
    Raises: NotFound for a folder without an adapter; UserError for a kind of adapter that
        is not supported; WeightMismatch where it was made for another model.
    """
    lora = read_adapter_config(folder)
    if dropout is not None:
        lora = dataclasses.replace(lora, dropout=dropout)
    # A model that ends at an inner layer lacks some of what the adapter was made for.
    whole = build.abstract_decoder(config, mesh, dtype=model.dtype)
    known = {
        s.removesuffix(".weight").rsplit(".", 1)[-1] for s, *_ in build.weight_table(config, whole)
    }
    strange = [t for t in lora.targets or () if t.rsplit(".", 1)[-1] not in known]
    if strange:
        raise UserError(
            f"{folder} adapts {strange}, which a {config.family} model does not have: it was made "
            "for another family"
        )
    model = adapters.attach(model, config, lora, mesh)
    empty = {path: leaf for path, leaf in build.leaves(model).items() if ".lora." in path}
    moves = adapters.factor_table(model, config, lora.targets)
    full = adapters.factor_table(whole, config, lora.targets)
    arrays = load.read_weights(
        _open_adapter(folder),
        moves,
        empty,
        {**config.sizes, "R": lora.rank},
        layers=model.depth,
        ignore=[re.escape(move.source) for move in full if move not in moves],
    )
    return build.fill(model, build.leaves(model) | arrays)


def _open_adapter(folder: Path) -> dict[str, Any]:
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


# What `read_adapter_config` reads, and fields that cannot change an output.
_READ: Final = frozenset(
    "peft_type r lora_alpha lora_dropout target_modules use_rslora init_lora_weights".split()
)
_HARMLESS: Final = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying "
    "eva_config inference_mode loftq_config megatron_core peft_version qalora_group_size revision "
    "runtime_config task_type".split()
)
_NEUTRAL: Final = (None, False, {}, [], "none")
_PLAIN_STARTS: Final = (None, True, False, "gaussian", "orthogonal")


def read_adapter_config(folder: Path) -> adapters.LoraConfig:
    """Read PEFT's `adapter_config.json`.

    Raises: NotFound without one; UserError that names everything that is not plain LoRA.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise NotFound(f"{folder} holds no adapter_config.json: it is no adapter folder")
    fields = json.loads(path.read_text(encoding="utf-8"))
    wrong = []
    if fields.get("peft_type") != "LORA":
        wrong.append(f"peft_type = {fields.get('peft_type')!r}, supported: 'LORA'")
    required = ("r", "lora_alpha", "target_modules")
    wrong += [f"{name} is missing" for name in required if name not in fields]
    wrong += [
        f"{name} = {value!r} is not supported"
        for name, value in fields.items()
        if name not in _READ | _HARMLESS and value not in _NEUTRAL
    ]
    if fields.get("init_lora_weights") not in _PLAIN_STARTS:  # others change the base as well
        wrong.append(f"init_lora_weights = {fields['init_lora_weights']!r} is not supported")
    targets = fields.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        wrong.append(f"target_modules = {targets!r} is a pattern; supported: a list of names")
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    return adapters.LoraConfig(
        rank=fields["r"],
        alpha=float(fields["lora_alpha"]),
        dropout=float(fields.get("lora_dropout", 0.0)),
        targets=None if targets == "all-linear" else _every_layer(targets),
        rslora=bool(fields.get("use_rslora", False)),
    )


def _every_layer(targets: list[str]) -> tuple[str, ...]:
    """Names as in the weight table; peft may list `model.decoder.layers.0.fc1` and so on.

    One that is adapted in some layers only then lacks the factors of the others, which is an error.
    """
    names = (re.sub(r"(^|\.)\d+\.", r"\1{l}.", name) for name in targets)
    return tuple(dict.fromkeys(name.removeprefix("model.") for name in names))
