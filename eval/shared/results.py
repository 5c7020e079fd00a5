"""Result files: what they hold beside the scores, and how they are written and read.

Arrays stand in the JSON as `{"dtype": "<f8", "base64": "..."}`, little-endian; floats as they are,
so that no two of them tie that did not, whole numbers in the fewest bits that hold them:
`numpy.frombuffer(base64.b64decode(it["base64"]), it["dtype"])`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import IsAFolder, UserError
from prompteol_jax.storage import paths as places


def prepare(*paths: Path | None) -> None:
    """Makes the folders of outputs, so that a long run cannot end without a place to write.

    Raises:
        IsAFolder: folders where files were expected, all in one error.
    """
    given = [places.as_path(path) for path in paths if path]
    folders = [str(path) for path in given if path.is_dir()]
    if folders:
        raise IsAFolder(f"expected a file to write, found a folder: {', '.join(folders)}")
    for path in given:
        path.parent.mkdir(parents=True, exist_ok=True)


def header(embedder: Any) -> dict[str, Any]:
    """Returns the first fields of every result: `model`, `template` and `dtype`, by name."""
    return {
        "model": str(embedder.model_name),
        "template": embedder.template.name,
        "dtype": np.dtype(embedder.dtype).name,
    }


def record(embedder: Any, options: ModelOptions) -> dict[str, Any]:
    """Returns the last fields of every result: the `options` given, and their `provenance`."""
    return {"options": dataclasses.asdict(options), "provenance": embedder.describe()}


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the first facts of a page: what was computed with, and how sentences went in."""
    sentences = "cleaned" if result["clean"] else "as they are"
    return {name: result[name] for name in ("model", "template", "dtype")} | {
        "sentences": sentences
    }


def title(result: Mapping[str, Any]) -> str:
    """Returns the heading of a table: what was computed with."""
    raw = "" if result.get("clean", True) else ", raw sentences"
    strict = result.get("strict_original")
    strict = f", as the released script, vectors in {strict}" if strict else ""
    kind = result.get("options", {}).get("quantize")
    dtype = f"{result['dtype']}, weights in {kind}" if kind else result["dtype"]
    return f"{result['model']}, template {result['template']}, {dtype}{raw}{strict}"


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON; paths become text, arrays as the module says."""
    text = json.dumps(result, indent=2, ensure_ascii=False, default=_plain)
    places.as_path(path).write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Reads a result file, arrays included.

    Raises:
        UserError: a file that is no JSON object, or holds a damaged array.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"), object_hook=_array)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no result file: {error}") from error
    if not isinstance(result, dict):
        raise UserError(f"{path} is no result file: expected a JSON object")
    return result


def _plain(value: object) -> object:
    if not isinstance(value, np.ndarray):
        return str(value)
    floats = value.dtype.kind == "f"
    kind = value.dtype if floats else np.min_scalar_type(int(value.max(initial=0)))
    packed = value.astype(kind.newbyteorder("<"))
    return {"dtype": packed.dtype.str, "base64": base64.b64encode(packed.tobytes()).decode()}


def _array(fields: dict[str, Any]) -> object:
    if set(fields) != {"dtype", "base64"}:
        return fields
    return np.frombuffer(base64.b64decode(fields["base64"], validate=True), fields["dtype"])
