"""Result files: what they hold beside the scores, and how they are written."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompteol_jax.options import ModelOptions


def prepare(*paths: Path | None) -> None:
    """Makes the folders of outputs, so that a long run cannot end without a place to write.

    Raises:
        IsADirectoryError: folders where files were expected, all in one error.
    """
    given = [path for path in paths if path]
    folders = [str(path) for path in given if path.is_dir()]
    if folders:
        raise IsADirectoryError(f"expected a file to write, found a folder: {', '.join(folders)}")
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


def title(result: Mapping[str, Any]) -> str:
    """Returns the heading of a table: what was computed with."""
    raw = "" if result.get("clean", True) else ", raw sentences"
    strict = result.get("strict_original")
    strict = f", as the released script, vectors in {strict}" if strict else ""
    kind = result.get("options", {}).get("quantize")
    dtype = f"{result['dtype']}, weights in {kind}" if kind else result["dtype"]
    return f"{result['model']}, template {result['template']}, {dtype}{raw}{strict}"


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON; paths become text."""
    text = json.dumps(result, indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
