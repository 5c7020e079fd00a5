"""Hugging Face checkpoint folders: weight files in, weight files out.

Reading maps files and copies nothing; `read_weights` then takes what each device holds, by the
weight table of the family. Writing goes the same table backwards.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from prompteol_jax.errors import NotFound, UserError, listed
from prompteol_jax.storage.json_files import read_object
from prompteol_jax.weights.load import copy_finite
from prompteol_jax.weights.mapping import (
    Sources,
    TensorMap,
    arrange,
    expand,
    file_shape,
    lengths,
    own_part,
    parse,
    reverse,
)
from prompteol_jax.weights.safetensors import check_names, open_safetensors
from prompteol_jax.weights.torch_bin import open_bin

_NAME_BYTES: Final = 255  # the longest name that common file systems take


def open_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Map every tensor of a checkpoint folder, safetensors before `.bin`, one file before shards.

    A leading `model.` is taken off the names: checkpoints come with and without it.

    Raises: NotFound where there are no weights, or not all shards; UserError for a file
        that is corrupt, or two tensors of one name.
    """
    tensors: dict[str, np.ndarray] = {}
    files, promised = _weight_files(folder)
    for path in files:
        opened = open_bin(path) if path.suffix == ".bin" else open_safetensors(path)
        for name, tensor in opened.items():
            short = name.removeprefix("model.")
            if short in tensors:
                raise UserError(f"{path}: tensor {name!r} occurs twice in {folder}.")
            tensors[short] = tensor
    lost = [name for name in promised if name.removeprefix("model.") not in tensors]
    if lost:
        raise UserError(f"{folder}: the index names tensors that its shards lack: {listed(lost)}.")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that `open_tensors` would open; it raises as that does."""
    files, _ = _weight_files(folder)
    return files


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files to open, and the names that their index lists."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return [folder / name], []
        if index.exists():
            return _shards(folder, index)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise NotFound(
        f"{folder} holds no weights that can be read. Wanted: model.safetensors or "
        f"pytorch_model.bin, or shards with their index. Found: {listed(held)}."
    )


def _shards(folder: Path, index: Path) -> tuple[list[Path], list[str]]:
    weight_map = read_object(index).get("weight_map")
    if type(weight_map) is not dict or not all(type(f) is str for f in weight_map.values()):
        raise UserError(f"{index}: not an index of shards: it has no `weight_map` of file names.")
    check_names(index, weight_map)
    names = sorted(set(weight_map.values()))
    suffix = ".bin" if index.name.endswith(".bin.index.json") else ".safetensors"
    strange = [name for name in names if not _is_shard(name, suffix)]
    if strange:
        raise UserError(
            f"{index}: refused, shards must be {suffix} files in the folder of the index, not "
            f"{listed(repr(name[:80]) for name in strange)}."
        )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise NotFound(
            f"{folder}: {len(missing)} of {len(names)} shards are missing: {listed(missing)}. "
            "Copy or download them."
        )
    return [folder / name for name in names], list(weight_map)


def _is_shard(name: str, suffix: str) -> bool:
    """Whether a name can only be that of a file in the same folder."""
    plain = name.isprintable() and len(name.encode()) <= _NAME_BYTES and Path(name).name == name
    return plain and name.endswith(suffix)


def write_weights(
    folder: Path,
    arrays: Mapping[str, jax.Array],
    table: Sequence[TensorMap],
    sizes: Mapping[str, int],
    *,
    dtype: DTypeLike,
    rename: Callable[[str], str],
    max_shard_bytes: int = 5_000_000_000,
    stem: str = "model",
) -> None:
    """Write arrays as safetensors that transformers loads: one file, or shards and their index.

    The inverse of `read_weights`, holding one shard in memory. Files get their names only when all
    of them are written, and replace safetensors that the folder held before.

    Args:
        sizes: as in `read_weights`; `sizes["L"]` is the number of layers in `arrays`.
        rename: from a name in `table` to the name in the file (puts `model.` back).
        stem: of the files' names.
    Raises: UserError where arrays and table disagree, where another process holds a part of an
        array, or where a tensor is not finite as `dtype`.
    """
    from safetensors.numpy import save_file

    sources = expand(table, sizes["L"])
    _check_arrays(arrays, sources, sizes)
    dtype = np.dtype(dtype)
    shards = _plan(sources, sizes, dtype.itemsize, max_shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        for number, shard in enumerate(shards, start=1):
            file = (
                f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
                if len(shards) > 1
                else f"{stem}.safetensors"
            )
            tensors = {
                rename(parts[0].name): _tensor(arrays, parts, sizes, dtype) for parts in shard
            }
            save_file(tensors, Path(scratch) / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
        total = sum(_items(parts, sizes) for shard in shards for parts in shard) * dtype.itemsize
        _publish(Path(scratch), folder, stem, weight_map, total)


class _Part(NamedTuple):
    """A leaf's part of a tensor, which is all of it unless several leaves share it."""

    name: str
    target: str
    layer: int | None
    dims: str


def _items(parts: Sequence[_Part], sizes: Mapping[str, int]) -> int:
    return math.prod(file_shape(parts[0].dims, sizes))


def _check_arrays(
    arrays: Mapping[str, jax.Array], sources: Mapping[str, Sources], sizes: Mapping[str, int]
) -> None:
    problems = [f"{target}: not in the weight table" for target in arrays if target not in sources]
    for target, (names, stacked, dims) in sources.items():
        shape = ((len(names),) if stacked else ()) + lengths(parse(dims)[1], sizes)
        if target not in arrays and names:
            problems.append(f"{target}: missing")
        elif target in arrays and arrays[target].shape != shape:
            problems.append(f"{target}: has shape {arrays[target].shape}, should be {shape}")
        elif target in arrays and not arrays[target].is_fully_addressable:
            problems.append(f"{target}: partly on other processes; gather it or write from one")
    if problems:
        raise UserError(f"weights cannot be written: {'; '.join(problems)}.")


def _plan(
    sources: Mapping[str, Sources], sizes: Mapping[str, int], itemsize: int, max_bytes: int
) -> list[list[list[_Part]]]:
    """Return the tensors of each shard, and the parts of each tensor."""
    tensors: dict[str, list[_Part]] = {}
    for target, (names, stacked, dims) in sources.items():
        for layer, name in enumerate(names):
            part = _Part(name, target, layer if stacked else None, dims)
            tensors.setdefault(name, []).append(part)
    shards: list[list[list[_Part]]] = [[]]
    room = max_bytes
    for parts in tensors.values():
        size = _items(parts, sizes) * itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(parts)
        room -= size
    return shards


def _tensor(
    arrays: Mapping[str, jax.Array],
    parts: Sequence[_Part],
    sizes: Mapping[str, int],
    dtype: np.dtype,
) -> np.ndarray:
    """Return a tensor of the file; what is in none of its parts is zero."""
    tensor = np.zeros(file_shape(parts[0].dims, sizes), dtype)
    for part in parts:
        view = arrange(_on_host(arrays[part.target], part.layer), reverse(part.dims), sizes)
        copy_finite(tensor[own_part(part.dims, sizes)], view, part.name)
    return tensor


def _on_host(array: jax.Array, layer: int | None) -> np.ndarray:
    index = () if layer is None else (layer,)
    leaf = np.empty(array.shape[len(index) :], array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            leaf[shard.index[len(index) :]] = np.asarray(shard.data[index] if index else shard.data)
    return leaf


def _publish(
    scratch: Path, folder: Path, stem: str, weight_map: Mapping[str, str], total_bytes: int
) -> None:
    files = sorted(set(weight_map.values()))
    index = folder / f"{stem}.safetensors.index.json"
    for old in (index, *folder.glob(f"{stem}*.safetensors")):
        old.unlink(missing_ok=True)
    for file in files:
        (scratch / file).rename(folder / file)
    if len(files) > 1:
        content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
