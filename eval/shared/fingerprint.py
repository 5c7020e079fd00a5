"""A digest of everything that decides the vectors of an embedder."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import prompteol_jax

# Where files are, and what a template is called, decides nothing; their content does.
_NAMES: Final = ("name", "folder", "revision")


def fingerprint(described: Mapping[str, Any], more: object = None) -> str:
    """Return the digest of a record of `Embedder.describe`, and of more that decides a result.

    It covers the content of the files of model and adapter, tokenizer, template, dtype, layer,
    pooling, plan, devices, versions, and the source of the library.
    """
    content = {name: _content(part) for name, part in described.items()}
    model = described["model"]
    if not model["files"]:
        content["model"]["name"] = model["name"]  # made from a seed: no file decides its weights
    text = json.dumps([content, more, _source_digest()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    return {name: value for name, value in part.items() if name not in _NAMES}


@functools.cache
def _source_digest() -> str:
    """Digest the modules of the library, whose version does not change while they are edited."""
    root = Path(prompteol_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
