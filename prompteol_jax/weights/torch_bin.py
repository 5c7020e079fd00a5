"""PyTorch's `.bin` files as read-only mapped views, without PyTorch.

Such a file is a zip archive of raw storages and one pickle. `state_pickle` reads the pickle as
data; here each tensor's storage, offset and strides are checked before a view is made.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import ml_dtypes
import numpy as np

from prompteol_jax.errors import UserError
from prompteol_jax.weights import safetensors, state_pickle

TORCH_DTYPES: Final[Mapping[str, np.dtype]] = {
    "Bool": np.dtype(np.bool_),
    "Byte": np.dtype(np.uint8),
    "Char": np.dtype(np.int8),
    "Short": np.dtype(np.int16),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Int": np.dtype(np.int32),
    "Float": np.dtype(np.float32),
    "Long": np.dtype(np.int64),
    "Double": np.dtype(np.float64),
}
_DIRECTORY_LIMIT: Final = 2**24  # bytes of the archive's directory; an entry takes about 80
_PICKLE_LIMIT: Final = 2**26  # bytes; a tensor takes about 200
_OVERLAP_LIMIT: Final = 4  # bytes of all views together, over the bytes of the file


def open_bin(path: Path) -> dict[str, np.ndarray]:
    """Map every tensor of a state dict written by `torch.save`, executing nothing.

    Tied and strided tensors come out as such: views of one storage, with its strides.

    Raises: NotFound; UserError for a pickle that names anything but tensors, for the
        format before PyTorch 1.6, and for anything compressed, truncated or out of bounds.
    """
    raw = safetensors.map_bytes(path)
    entries, root, pickled = _archive(path, raw)
    try:
        state = state_pickle.read_state(pickled)
    except UserError as error:
        raise UserError(f"{path}: not a readable state dict: {error}.") from error
    safetensors.check_names(path, state)
    storages: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        key = tensor.storage.key
        if key not in storages:
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise UserError(f"{path}: the storage of tensor {name!r} is not in the archive.")
            storages[key] = _entry_bytes(path, raw, entry)
    views = {
        name: _strided_view(path, name, tensor, storages[tensor.storage.key])
        for name, tensor in state.items()
    }
    total = sum(view.size * view.itemsize for view in views.values())
    if total > _OVERLAP_LIMIT * raw.size:
        raise UserError(
            f"{path}: its tensors are {total} bytes, the file has {raw.size}: they repeat the same "
            "bytes too often. Save contiguous tensors."
        )
    return views


def _archive(path: Path, raw: np.ndarray) -> tuple[dict[str, zipfile.ZipInfo], str, bytes]:
    """The archive's entries, the prefix of their names, and the pickle."""
    try:
        with _Directory(path) as file, zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    except Exception as error:  # damage can end in any exception
        raise UserError(f"{path}: {_not_a_zip(raw)}") from error
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise UserError(f"{path}: two entries of the archive have one name: the file is corrupt.")
    packed = [name for name, entry in entries.items() if entry.compress_type or entry.flag_bits & 1]
    if packed:
        raise UserError(
            f"{path}: entry {packed[0]!r} is compressed or encrypted; torch.save writes plain "
            "entries. Unpack the archive and save it again with torch.save."
        )
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path}: a zip file, but not one that torch.save wrote (no data.pkl).")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and _entry_bytes(path, raw, order)[:8].tobytes() != b"little":
        raise UserError(
            f"{path}: its byte order is not little-endian; save it again on x86 or ARM."
        )
    if entries[pickles[0]].file_size > _PICKLE_LIMIT:
        raise UserError(f"{path}: its table of tensors is longer than {_PICKLE_LIMIT} bytes.")
    pickled = _entry_bytes(path, raw, entries[pickles[0]]).tobytes()
    if zlib.crc32(pickled) != entries[pickles[0]].CRC:
        raise UserError(f"{path}: the checksum of its pickle is wrong: the file is corrupt.")
    return entries, root, pickled


class _Directory(io.FileIO):
    """An archive of which only a directory of bounded size is read."""

    def read(self, size: int = -1) -> bytes:
        wanted = os.fstat(self.fileno()).st_size - self.tell() if size < 0 else size
        if wanted > _DIRECTORY_LIMIT:
            raise UserError(f"the archive's directory is longer than {_DIRECTORY_LIMIT} bytes")
        return super().read(size)


def _not_a_zip(raw: np.ndarray) -> str:
    head = raw[:4].tobytes()
    if head == b"PK\x03\x04":
        return "a truncated or corrupt PyTorch file. Copy or download it again."
    if head[:1] == b"\x80":
        return (
            "a PyTorch file from before version 1.6, which this project does not read. Load and "
            "save it once with a current PyTorch, or convert it to safetensors."
        )
    return "not a PyTorch file (a zip archive was expected)."


def _entry_bytes(path: Path, raw: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    # The local header repeats the name and may carry other padding than the central directory.
    header = raw[entry.header_offset : entry.header_offset + 30].tobytes()
    if entry.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path}: entry {entry.filename!r} has no header: the file is corrupt.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > raw.size:
        raise UserError(f"{path}: entry {entry.filename!r} ends after the file: truncated.")
    return raw[start : start + entry.file_size]


def _strided_view(
    path: Path, name: str, tensor: state_pickle.Tensor, storage: np.ndarray
) -> np.ndarray:
    dtype, items = TORCH_DTYPES[tensor.storage.kind], tensor.storage.items
    if items * dtype.itemsize != storage.size:
        raise UserError(
            f"{path}: tensor {name!r} needs a storage of {items} x {dtype.itemsize} bytes, the "
            f"archive holds {storage.size}."
        )
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and tensor.offset + reach >= items:
        raise UserError(
            f"{path}: tensor {name!r} (shape {tensor.shape}, strides {tensor.strides}, offset "
            f"{tensor.offset}) reaches outside its storage of {items} items: refused."
        )
    try:
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        return np.ndarray(
            tensor.shape,
            dtype,
            buffer=storage,
            offset=tensor.offset * dtype.itemsize,
            strides=tuple(step * dtype.itemsize for step in tensor.strides),
        )
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: tensor {name!r} of shape {tensor.shape}: {error}.") from error
