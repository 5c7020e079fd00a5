"""Safetensors files as read-only mapped views.

The format is eight bytes of header length, a JSON header, and raw bytes. Only the header is read
until a view is used, and every length and offset in it is checked against the file first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.storage import json_files

SAFETENSORS_DTYPES: Final[Mapping[str, np.dtype]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}

LARGEST: Final = 2**62  # of numbers that count items or bytes
_MOST_AXES: Final = 64
_NAME_LENGTH: Final = 1000


def open_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Map every tensor of a safetensors file.

    Raises: NotFound; UserError naming file and tensor where the header does not describe
        the file exactly (truncated, overlapping, unknown dtype, wrong byte count).
    """
    raw = map_bytes(path)
    header, start = _safetensors_header(path, raw)
    check_names(path, header)
    data = raw[start:]
    spans = {name: _safetensors_span(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.end > data.size:
            raise UserError(
                f"{path}: tensor {name!r} ends at byte {start + span.end}, but the file has only "
                f"{raw.size}: it is truncated. Copy or download it again."
            )
        if span.begin != end:
            fault = "overlaps another tensor" if span.begin < end else "follows unused bytes"
            raise UserError(f"{path}: tensor {name!r} {fault}: the file is corrupt.")
        end = span.end
    if end != data.size:
        raise UserError(f"{path}: {data.size - end} bytes after the last tensor: corrupt file.")
    return {
        name: data[span.begin : span.end].view(span.dtype).reshape(span.shape)
        for name, span in spans.items()
    }


class _Span(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _safetensors_header(path: Path, raw: np.ndarray) -> tuple[dict[str, Any], int]:
    if raw.size < 8:
        raise UserError(f"{path}: {raw.size} bytes are too few for a safetensors file.")
    (length,) = struct.unpack("<Q", raw[:8].tobytes())
    if length > raw.size - 8:
        raise UserError(
            f"{path}: the header claims {length} bytes of a file of {raw.size}: truncated, or not "
            "a safetensors file. Copy or download it again."
        )
    if length > json_files.LIMIT:
        raise UserError(
            f"{path}: a header of {length} bytes; at most {json_files.LIMIT} are read. Save the "
            "tensors in several files."
        )
    text = raw[8 : 8 + length].tobytes()
    header = json_files.parse_object(text, f"{path}: the safetensors header")
    header.pop("__metadata__", None)
    return header, 8 + length


def _safetensors_span(path: Path, name: str, entry: Any) -> _Span:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise UserError(f"{path}: tensor {name!r} lacks dtype, shape or data_offsets.")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not are_naturals(shape) or not are_naturals(offsets) or len(offsets) != 2:
        raise UserError(
            f"{path}: tensor {name!r} has shape {shape!r:.80} at bytes {offsets!r:.80}."
        )
    if type(entry["dtype"]) is not str or entry["dtype"] not in SAFETENSORS_DTYPES:
        raise UserError(
            f"{path}: tensor {name!r} has dtype {entry['dtype']!r:.80}; readable are "
            f"{', '.join(SAFETENSORS_DTYPES)}."
        )
    dtype = SAFETENSORS_DTYPES[entry["dtype"]]
    begin, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise UserError(
            f"{path}: tensor {name!r} of shape {tuple(shape)} and dtype {entry['dtype']} needs "
            f"{needed} bytes, the header gives it {end - begin}."
        )
    return _Span(dtype, tuple(shape), begin, end)


def check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse names of tensors that are long or not printable: errors show them."""
    for name in names:
        if len(name) > _NAME_LENGTH or not name.isprintable():
            raise UserError(
                f"{path}: a tensor's name is {name[:40]!r}, of {len(name)} characters; allowed are "
                f"up to {_NAME_LENGTH}, printable ones."
            )


def are_naturals(values: Any, most: int = _MOST_AXES) -> bool:
    """Whether `values` is a list or tuple of integers from 0 to 2^62, as shapes must be.

    Args:
        most: number of values that are allowed.
    """
    return (
        isinstance(values, list | tuple)
        and len(values) <= most
        and all(type(value) is int and 0 <= value <= LARGEST for value in values)
    )


def map_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, mapped read-only.

    Raises: NotFound; UserError where the file is empty, or a Git LFS pointer instead of
        its content.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. Copy or download it again.")
    raw = np.asarray(np.memmap(path, np.uint8, mode="r"))
    if raw[:64].tobytes().startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: a Git LFS pointer, not the file itself. Run `git lfs pull` in its repository."
        )
    return raw
