"""Result files: what they hold besides the scores, how they are named, written and read.

An array is `{"dtype": "<f8", "base64": "..."}` in the JSON, little-endian. Floats keep their
precision, so that no two of them tie that did not; whole numbers take the fewest bits that hold
them. Read one with `numpy.frombuffer(base64.b64decode(it["base64"]), it["dtype"])`.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic, json_files
from prompteol_jax.storage import paths as places

LIMIT: Final = 2**28  # bytes of a result file, most of them arrays
MARGIN: Final = "± 95 %"  # the column of `margin`


def prepare(*paths: Path | None) -> None:
    """Make the folders of outputs, so that a long run cannot end without a place to write.

    Raises: as `atomic.prepare`.
    """
    atomic.prepare(*(places.as_path(path) for path in paths if path))


def header(command: str, embedder: Any, options: ModelOptions) -> dict[str, Any]:
    """Return the first fields of every result: what was run, with what, when and by which version.

    Args:
        command: Name of the command, such as `eval.sts`.
    """
    described = embedder.describe()
    return {
        **stamp(command),
        "model": str(embedder.model_name),
        "adapter": options.adapter,
        "template": embedder.template.name,
        "dtype": np.dtype(embedder.dtype).name,
        "quantize": options.quantize,
        "layer": described.get("layer", options.layer),  # None where --layer names the last one
        "pooling": described.get("pooling", options.pooling),
        **({"method": described["method"]["name"]} if "method" in described else {}),
    }


def stamp(command: str) -> dict[str, str]:
    """Return the command, the date and the version that made a result."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "command": command,
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "version": metadata.version("prompteol-jax"),
    }


def record(embedder: Any, options: ModelOptions) -> dict[str, Any]:
    """Return the last fields of every result: the `options` given, and their `provenance`."""
    return {"options": dataclasses.asdict(options), "provenance": embedder.describe()}


def settings(result: Mapping[str, Any]) -> dict[str, str]:
    """Return in words what decides the scores, for titles, pages and comparisons."""
    strict = result.get("strict_original")
    data = result.get("data") or {}
    protocol = result.get("protocol")
    layer = result.get("layer")
    found = {
        "model": str(result["model"]),
        "adapter": str(result.get("adapter") or "none"),
        "template": str(result["template"]),
        "dtype": str(result["dtype"]),
        "layer": "last" if layer is None else str(layer),
        "pooling": str(result.get("pooling") or "last"),
        "sentences": "cleaned" if result.get("clean", True) else "as they are",
    }
    if (result.get("options") or {}).get("max_tokens"):
        given = result["options"]
        how = {"end": "at their end", "middle": "in their middle"}.get(given.get("truncate"), "")
        found["texts"] = f"cut to {given['max_tokens']} tokens {how}".strip()
    if result.get("method"):
        found["method"] = str(result["method"])
    if result.get("quantize"):
        found["weights"] = str(result["quantize"])
    if data:
        found["split"] = str(data["split"])
    if strict:
        found["as the released script"] = f"vectors in {strict}"
    if protocol:
        found["protocol"] = (
            f"{protocol['folds']} folds, {protocol['optimizer']}, seed {protocol['seed']}"
        )
    if result.get("task_templates"):
        found["templates by task"] = ", ".join(result["task_templates"])
    if result.get("task_methods"):
        found["methods by task"] = ", ".join(result["task_methods"])
    return found


def title(result: Mapping[str, Any]) -> str:
    """Return the heading of a table: model, template, dtype, and every unusual setting."""
    found = settings(result)
    usual = {
        **{"adapter": "none", "layer": "last", "pooling": "last"},
        **{"sentences": "cleaned", "split": "test"},
    }
    words = {
        **{"adapter": "adapter {}", "template": "template {}", "method": "method {}"},
        "dtype": "{}",
        **{"weights": "weights in {}", "layer": "layer {}", "pooling": "{} pooling"},
        **{"sentences": "raw sentences", "split": "{} split"},
        "as the released script": "as the released script, {}",
        **{"templates by task": "other templates for {}", "texts": "texts {}"},
        "methods by task": "other methods for {}",
    }
    shown = [found["model"]]
    shown += [
        form.format(found[name])
        for name, form in words.items()
        if name in found and found[name] != usual.get(name)
    ]
    if (result.get("options") or {}).get("fast"):
        shown.append("fast protocol")
    if lacking := (result.get("data") or {}).get("incomplete"):
        shown.append(f"not the published {', '.join(lacking)}")
    return ", ".join(shown)


def page_title(kind: str, result: Mapping[str, Any]) -> str:
    """Return the title of a page: the kind of evaluation, and `title` with short names."""
    short = {"model": Path(str(result["model"])).name or str(result["model"])}
    if result.get("adapter"):
        short["adapter"] = Path(str(result["adapter"])).name
    return f"{kind}: {title({**result, **short})}"


def margin(result: Mapping[str, Any], name: str) -> str:
    """Return half the width of a task's interval, or a dash where the result has none."""
    found = (result.get("intervals") or {}).get(name)
    return "–" if found is None else f"{(found[1] - found[0]) / 2:.2f}"


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts that open a page: settings, data, time, date and version."""
    data = result.get("data")
    found = settings(result)
    if data:
        lacking = data["incomplete"]
        found["data"] = data["folder"]
        found["data is"] = (
            "as published"
            if not lacking
            else "not as published: "
            + "; ".join(f"{name} {what}" for name, what in lacking.items())
        )
    if "seconds" in result:
        found["time"] = f"{result['seconds']:,.1f} s"
        if result.get("from_cache"):
            found["time"] += f", with {result['from_cache']:,} vectors of earlier runs"
    if "date" in result:
        found["made"] = f"{result['date']}, version {result['version']}"
    return found


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON: paths become text, NaN becomes null, arrays as the module says.

    Raises: CannotWrite if the disk refuses; what was there before stays.
    """
    text = json.dumps(_finite(result), indent=2, ensure_ascii=False, default=_plain) + "\n"
    atomic.write_whole(places.as_path(path), lambda file: file.write(text.encode()))


def read(path: Path) -> dict[str, Any]:
    """Read a result file, arrays included.

    Raises: UserError for a file that is no JSON object, or that holds a damaged array.
    """
    try:
        return _with_arrays(json_files.read_object(path, LIMIT))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no result file: {error!s:.200}") from error


def _finite(value: object) -> object:
    """Return a value without the floats that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if not isinstance(value, np.ndarray):
        return str(value)
    floats = value.dtype.kind == "f"
    kind = value.dtype if floats else np.min_scalar_type(int(value.max(initial=0)))
    packed = value.astype(kind.newbyteorder("<"))
    return {"dtype": packed.dtype.str, "base64": base64.b64encode(packed.tobytes()).decode()}


def _with_arrays(value: Any) -> Any:
    """Return a value of JSON with the arrays that `_plain` wrote."""
    if isinstance(value, list):
        return [_with_arrays(item) for item in value]
    if not isinstance(value, dict):
        return value
    return _array(value) if set(value) == {"dtype", "base64"} else _each(value)


def _each(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _with_arrays(value) for name, value in fields.items()}


def _array(fields: Mapping[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(fields["base64"], validate=True), fields["dtype"])
