"""Tensors of a checkpoint -> sharded arrays, by a weight table, strictly.

Every name and shape is checked first. Then shard after shard is copied out of the mapped file in
the layout and dtype of its leaf, so the host holds one shard at a time.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import jax
import numpy as np

from prompteol_jax import distributed
from prompteol_jax.errors import UserError, listed
from prompteol_jax.quant import bitsandbytes
from prompteol_jax.quant import formats as quant
from prompteol_jax.weights.mapping import (
    Sources,
    TensorMap,
    arrange,
    expand,
    file_shape,
    lengths,
    own_part,
    parse,
    parts_of,
)

FLOAT_TYPES: Final = ("float16", "bfloat16", "float32", "float64")
_TILE_ROWS: Final = 256
_TILE: Final = 256 * _TILE_ROWS  # items copied together


class WeightMismatch(UserError):
    """The names or shapes in a checkpoint are not those of the model."""

    def __init__(
        self,
        where: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        misshapen: Sequence[str],
    ) -> None:
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)
        kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
        problems = "".join(
            f"\n  {kind} ({len(names)}): {listed(names)}" for kind, names in kinds.items() if names
        )
        super().__init__(
            f"{where} does not fit the model:{problems}\n"
            "Check that configuration, weight files and model belong together and are complete."
        )


def read_weights(
    tensors: Mapping[str, np.ndarray],
    table: Sequence[TensorMap],
    leaves: Mapping[str, jax.ShapeDtypeStruct | quant.Quantized],
    sizes: Mapping[str, int],
    *,
    layers: int,
    where: str = "the checkpoint",
    ignore: Sequence[str] = (),
    alias: Mapping[str, str] | None = None,
) -> dict[str, jax.Array | quant.Quantized]:
    """Read a checkpoint into arrays of the given shapes, dtypes and shardings.

    Names and shapes are checked before anything is read. Then each process reads the shards of its
    devices, one at a time. Of a quantized leaf each process reads all tensors, one at a time.

    Args:
        leaves: placeholders by target path; a stacked leaf has a leading axis of `layers - 1`.
        sizes: length of each letter in `dims`; `sizes["L"]` is the number of layers in the file.
        layers: number of layers to load, from the first.
        where: name of the checkpoint in errors.
        ignore: patterns of whole names that may be in the file and are not read.
        alias: the name to take where another one is missing (a tied embedding).
    Raises: WeightMismatch; UserError naming a tensor that holds NaN or infinity, before or after
        the cast to its leaf's dtype.
    """
    if not 1 <= layers <= sizes["L"]:
        raise UserError(f"{layers} layers asked for; the checkpoint has {sizes['L']}.")
    alias = alias or {}
    sources = expand(table, layers)
    _check_leaves(leaves, sources, sizes)
    known = {name for found in expand(table, sizes["L"]).values() for name in found.names}
    problems = _problems(tensors, sources, sizes, known=known, ignore=ignore, alias=alias)
    if any(problems):
        raise WeightMismatch(where, *problems)
    arrays = {}
    for target, leaf in leaves.items():
        names, stacked, dims = sources[target]
        present = [name if name in tensors else alias[name] for name in names]
        held = [(name, tensors[name]) for name in present]
        arrays[target] = _read(leaf, held, dims, sizes, stacked=stacked)
    return arrays


def _check_leaves(
    leaves: Mapping[str, jax.ShapeDtypeStruct | quant.Quantized],
    sources: Mapping[str, Sources],
    sizes: Mapping[str, int],
) -> None:
    problems = [f"{target}: no row makes it" for target in leaves if target not in sources]
    for target, (names, stacked, dims) in sources.items():
        shape = ((len(names),) if stacked else ()) + lengths(parse(dims)[1], sizes)
        if target in leaves and leaves[target].shape != shape:
            problems.append(f"{target}: its row gives {shape}, the leaf is {leaves[target].shape}")
        elif target not in leaves and names:
            problems.append(f"{target}: no such leaf")
    if problems:
        raise UserError(f"weight table and model disagree: {'; '.join(problems)}.")


def _problems(
    tensors: Mapping[str, np.ndarray],
    sources: Mapping[str, Sources],
    sizes: Mapping[str, int],
    *,
    known: set[str],
    ignore: Sequence[str],
    alias: Mapping[str, str],
) -> tuple[list[str], list[str], list[str]]:
    """The tensors that are missing, unexpected, misshapen."""
    missing, misshapen = [], []
    for names, _, dims in sources.values():
        shape = file_shape(dims, sizes)
        for name in names:
            other = alias.get(name, name)
            if name not in tensors and other not in tensors:
                missing.append(name if other == name else f"{name} (or {other})")
                continue
            found = name if name in tensors else other
            tensor = tensors[found]
            if tensor.shape != shape or tensor.dtype.name not in FLOAT_TYPES:
                misshapen.append(
                    f"{found} is {tensor.dtype} {tensor.shape}, should be float {shape}"
                )
    # A tensor of several leaves is listed once.
    missing, misshapen = list(dict.fromkeys(missing)), list(dict.fromkeys(misshapen))
    allowed = known | set(alias.values())
    unexpected = [
        name
        for name in tensors
        if name not in allowed and not any(re.fullmatch(pattern, name) for pattern in ignore)
    ]
    return missing, unexpected, misshapen


def _read(
    leaf: jax.ShapeDtypeStruct | quant.Quantized,
    held: Sequence[tuple[str, np.ndarray]],
    dims: str,
    sizes: Mapping[str, int],
    *,
    stacked: bool,
) -> jax.Array | quant.Quantized:
    """Return a leaf from the tensors that hold it, one for each layer where it is stacked."""
    if isinstance(leaf, quant.Quantized) and parts_of(dims) > 1:
        file, target = parse(dims)
        assert sum(file, ()) == sum(target, ())  # a part of the rows, as they are
        return place_quantized(leaf, held, stacked=stacked, rows=own_part(dims, sizes)[0])
    views = [(name, arrange(tensor, dims, sizes)) for name, tensor in held]
    return _place(leaf, views, stacked=stacked)


Index = tuple[slice, ...]


def _place(
    leaf: jax.ShapeDtypeStruct | quant.Quantized,
    views: Sequence[tuple[str, np.ndarray]],
    *,
    stacked: bool,
) -> jax.Array | quant.Quantized:
    if isinstance(leaf, quant.Quantized):
        return place_quantized(leaf, views, stacked=stacked)
    if leaf.sharding is None:
        everything = tuple(slice(0, n) for n in leaf.shape)
        return jax.device_put(_shard(leaf, views, everything, stacked=stacked))
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(part.indices(n)[:2] for part, n in zip(index or (), leaf.shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    placed = []
    for bounds, devices in holders.items():
        index = tuple(slice(*bound) for bound in bounds)
        placed += _put(_shard(leaf, views, index, stacked=stacked), devices)
    return jax.make_array_from_single_device_arrays(
        leaf.shape, leaf.sharding, placed, dtype=leaf.dtype
    )


def place_quantized(
    leaf: quant.Quantized,
    views: Sequence[tuple[str, np.ndarray]],
    *,
    stacked: bool,
    rows: slice = slice(None),
) -> quant.Quantized:
    """Quantize the tensors of a leaf, one at a time, and put the result on the leaf's devices.

    Args:
        views: names and weights, one for each layer where the leaf is stacked, else one.
        rows: those of the leaf, where a weight's matrix holds those of other leaves too.
    """
    described = leaf.parts()
    hosts = {name: _aligned(part.shape, part.dtype) for name, part in described.items()}
    for layer, (name, view) in enumerate(views):
        matrix = view.reshape(leaf.outputs, -1) if rows == slice(None) else view
        parts = bitsandbytes.quantize(leaf.kind, matrix, name, rows)
        for part, host in hosts.items():
            target = host[layer, ...] if stacked else host
            target[...] = parts[part].reshape(target.shape)
    arrays = {
        name: jax.block_until_ready(distributed.to_global(host, described[name].sharding))
        for name, host in hosts.items()
    }
    return dataclasses.replace(leaf, **arrays)


def _put(shard: np.ndarray, devices: Sequence[jax.Device]) -> list[jax.Array]:
    # Waiting here frees the host's copy before the next one is made.
    return jax.block_until_ready([jax.device_put(shard, device) for device in devices])


def _shard(
    leaf: jax.ShapeDtypeStruct,
    views: Sequence[tuple[str, np.ndarray]],
    index: Index,
    *,
    stacked: bool,
) -> np.ndarray:
    shard = _aligned(tuple(part.stop - part.start for part in index), leaf.dtype)
    if not stacked:
        ((name, view),) = views
        copy_finite(shard, view[index], name)
        return shard
    for layer, (name, view) in zip(shard, views[index[0]], strict=True):
        copy_finite(layer, view[index[1:]], name)
    return shard


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array at a multiple of 64 bytes, which CPU devices take over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def copy_finite(target: np.ndarray, source: np.ndarray, name: str) -> None:
    """Copy and cast, refusing what is NaN or infinite afterwards."""
    for part in _tiles(target.shape):
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(target[part], source[part], casting="unsafe")
        if not np.isfinite(target[part]).all():
            raise UserError(
                f"tensor {name!r} holds NaN or infinity as {target.dtype} "
                f"(in the file: {source.dtype}). The checkpoint is damaged, or needs a wider dtype."
            )


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Blocks over the first two axes, small enough that a transposition stays in cache."""
    if len(shape) < 2:
        yield ()
        return
    rows, columns, *rest = shape
    width = max(1, _TILE // (_TILE_ROWS * max(1, math.prod(rest))))
    for row in range(0, rows, _TILE_ROWS):
        for column in range(0, columns, width):
            yield slice(row, row + _TILE_ROWS), slice(column, column + width)
