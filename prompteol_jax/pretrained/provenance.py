"""What decided a result: files and their digests, prompt token by token, dtypes, devices, versions.

Two results with equal records were computed by the same code from the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax

from prompteol_jax.lora import peft
from prompteol_jax.models import build
from prompteol_jax.pretrained import hub
from prompteol_jax.pretrained.load import TOKENIZER_FILES
from prompteol_jax.weights.folder import weight_files

if TYPE_CHECKING:
    from prompteol_jax.embedder import Embedder
    from prompteol_jax.pretrained.load import Pretrained
    from prompteol_jax.text.prompt import Prompt

PACKAGES: Final = ("prompteol-jax", "jax", "jaxlib", "flax", "transformers", "tokenizers", "numpy")
EXAMPLE: Final = "A cat sleeps."


def describe(embedder: Embedder) -> dict[str, Any]:
    """Return the whole record of an embedder, ready for JSON.

    It holds `model` and `adapter` (name, commit where the hub's cache tells it, SHA-256 by file;
    parameters of the decoder, without a language-model head of its own), `tokenizer`,
    `template` (with the ids of an example), `dtype` (activations; bytes of weights by dtype),
    `quantize`, `layer` (None: the last, after its norm), `pooling`, `max_tokens`, `plan`,
    `devices`, `versions`.
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
        "pooling": embedder.pooling,
        "max_tokens": embedder.max_tokens,
        "plan": embedder.plan,
        "devices": _devices(source),
        "versions": versions(),
    }


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, of what the library computes with, and of more packages."""
    installed = {name: metadata.version(name) for name in (*PACKAGES, *more)}
    return {"python": platform.python_version(), **installed}


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256; a file that has not changed is read once a process."""
    real = path.resolve()
    stat = real.stat()
    return _sha256(real, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model(source: Pretrained) -> dict[str, Any]:
    config = source.config
    whole = build.leaves(build.abstract_decoder(config, source.mesh, dtype="float32")).values()
    fields = {
        **{"name": source.name, "family": config.family, "layers": config.L},
        "parameters": sum(math.prod(leaf.shape) for leaf in whole),
    }
    if source.folder is None:
        return fields | {"folder": None, "revision": None, "files": {}}
    side = [source.folder / name for name in ("config.json", *TOKENIZER_FILES)]
    return fields | {
        "folder": str(source.folder),
        "revision": hub.weights_revision(source.folder),
        "files": _digests([*side, *weight_files(source.folder)]),
    }


def _adapter(folder: Path) -> dict[str, Any]:
    names = ("adapter_config.json", *peft.ADAPTER_FILES)
    return {
        "folder": str(folder),
        "revision": hub.weights_revision(folder),
        "files": _digests([folder / name for name in names]),
    }


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in paths if path.is_file()}


def _template(prompt: Prompt) -> dict[str, Any]:
    filled = prompt.template.fill(EXAMPLE)
    (ids,) = prompt.tokenizer.ids([filled])
    entry = prompt.tokenizer.entry
    return {
        "name": prompt.template.name,
        **prompt.template.to_json(),
        "example": filled,
        "tokens": [{"id": int(i), "token": entry(i)} for i in ids],
        "shared_prefix": len(prompt.prefix_C),
    }


def _devices(source: Pretrained) -> dict[str, Any]:
    devices = source.mesh.devices
    return {
        "kind": devices.flat[0].device_kind,
        "platform": devices.flat[0].platform,
        "mesh": "x".join(map(str, devices.shape)),
        "processes": jax.process_count(),
        "system": platform.platform(),
    }
