"""What decided a result: files and their digests, prompt token by token, dtypes, devices, versions.

Two results with equal records were computed by the same code from the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax

import prompteol_jax
from prompteol_jax import runtime
from prompteol_jax.lora import peft
from prompteol_jax.models import build
from prompteol_jax.pretrained import hub
from prompteol_jax.pretrained.load import TOKENIZER_FILES
from prompteol_jax.storage.fingerprint import files_sha256
from prompteol_jax.weights.folder import weight_files

if TYPE_CHECKING:
    from prompteol_jax.embedder import Embedder
    from prompteol_jax.pretrained.load import Pretrained
    from prompteol_jax.text.prompt import Prompt

PACKAGES: Final = ("prompteol-jax", "jax", "jaxlib", "flax", "transformers", "tokenizers", "numpy")
VECTORS: Final = 1  # a number to raise with each change that moves vectors beyond rounding
EXAMPLE: Final = "A cat sleeps."
# Where files are, and what a template is called, decides nothing; their content does.
_NAMES: Final = ("name", "folder", "revision")


def describe(embedder: Embedder) -> dict[str, Any]:
    """Return the whole record of an embedder, ready for JSON.

    It holds `model` and `adapter` (name, commit where the hub's cache tells it, SHA-256 by file;
    parameters of the decoder, without an untied LM head), `tokenizer`,
    `template` (with the ids of an example), `dtype` (activations; bytes of weights by dtype),
    `quantize`, `layer` (None: the last, after its norm), `pooling`, `edits`, `max_tokens`,
    `truncate`, `plan`, `devices`, `versions`.
    """
    source = embedder.pretrained
    leaves = jax.tree.leaves(embedder.decoder)
    weights: dict[str, int] = {}
    for leaf in leaves:
        weights[str(leaf.dtype)] = weights.get(str(leaf.dtype), 0) + leaf.nbytes
    return {
        "model": _model(source),
        "adapter": source.adapter and _adapter(source.adapter),
        "tokenizer": {"sha256": source.tokenizer.sha256, "bos_id": source.tokenizer.bos_id},
        "template": _template(embedder.prompt),
        "dtype": {"activations": embedder.dtype, "weight_bytes": weights},
        "quantize": source.quantize,
        "layer": source.layer,
        **embedder.describe_method(),
        "max_tokens": embedder.max_tokens,
        "truncate": embedder.prompt.truncate,
        "plan": embedder.plan,
        "devices": _devices(source),
        "versions": versions(),
    }


def digest(described: Mapping[str, Any], more: object = None) -> str:
    """Return the digest of a record of `describe`, and of more that decides a result.

    Equal digests mean equal bits: it covers devices, versions and the library's source too.
    `ModelOptions.work` describes the same before anything is loaded, and leaves those out.
    """
    content = {name: _content(part) for name, part in described.items()}
    model = described["model"]
    if not model["files"]:
        content["model"]["name"] = model["name"]  # made from a seed: no file decides its weights
    text = json.dumps([content, more, _source_digest()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, of what the library computes with, and of more packages."""
    installed = {name: metadata.version(name) for name in (*PACKAGES, *more)}
    return {"python": platform.python_version(), **installed}


def model_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256, by name, of the files in a folder that decide what its model computes."""
    names = ("config.json", *TOKENIZER_FILES)
    return files_sha256([*(folder / name for name in names), *weight_files(folder)])


def adapter_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256, by name, of the files of an adapter."""
    return files_sha256(folder / name for name in ("adapter_config.json", *peft.ADAPTER_FILES))


def _model(source: Pretrained) -> dict[str, Any]:
    config = source.config
    whole = build.leaves(build.abstract_decoder(config, source.mesh, dtype="float32")).values()
    fields = {
        **{"name": source.name, "family": config.family, "layers": config.L},
        "parameters": sum(math.prod(leaf.shape) for leaf in whole),
    }
    if source.folder is None:
        return fields | {"folder": None, "revision": None, "files": {}}
    return fields | {
        "folder": str(source.folder),
        "revision": hub.weights_revision(source.folder),
        "files": model_files(source.folder),
    }


def _adapter(folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "revision": hub.weights_revision(folder),
        "files": adapter_files(folder),
    }


def _template(prompt: Prompt) -> dict[str, Any]:
    entry = prompt.tokenizer.entry
    return {
        "name": prompt.template.name,
        **prompt.template.to_json(),
        "example": prompt.template.fill(EXAMPLE),
        "tokens": [{"id": int(i), "token": entry(i)} for i in prompt.whole(EXAMPLE)],
        "shared_prefix": len(prompt.prefix_C),
    }


def _devices(source: Pretrained) -> dict[str, Any]:
    devices = source.mesh.devices
    return {
        **runtime.describe_device(devices.flat[0]),
        "mesh": "x".join(map(str, devices.shape)),
        "processes": jax.process_count(),
        "system": platform.platform(),
    }


def _content(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    return {name: value for name, value in part.items() if name not in _NAMES}


@functools.cache
def _source_digest() -> str:
    """Digest the modules of the library, whose version does not change while they are edited."""
    root = Path(prompteol_jax.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()
