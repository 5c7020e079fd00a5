"""PyTorch's `.bin` files as read-only mapped views, without PyTorch.

Such a file is a zip archive of raw storages and one pickle. A pickle is a program, so it runs in an
unpickler that knows the few names a table of tensors needs and refuses every other one; each
tensor's storage, offset and strides are checked before a view is made.
"""

import collections
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from prompteol_jax.errors import UserError
from prompteol_jax.weights import safetensors

TORCH_DTYPES: Final[Mapping[str, np.dtype]] = {
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "ShortStorage": np.dtype(np.int16),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "IntStorage": np.dtype(np.int32),
    "FloatStorage": np.dtype(np.float32),
    "LongStorage": np.dtype(np.int64),
    "DoubleStorage": np.dtype(np.float64),
}


def open_bin(path: Path) -> dict[str, np.ndarray]:
    """Map every tensor of a state dict written by `torch.save`, executing nothing.

    Tied and strided tensors come out as such: views of one storage, with its strides.

    Raises: NotFound; UserError for a pickle that names anything but tensors, for the
        format before PyTorch 1.6, and for anything compressed, truncated or out of bounds.
    """
    raw = safetensors.map_bytes(path)
    entries, root, pickled = _archive(path, raw)
    try:
        state = _StateUnpickler(io.BytesIO(pickled)).load()
    except Exception as error:  # a damaged pickle can end in any exception
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: not a readable state dict: {reason}.") from error
    _refuse_other_values(path, state)
    storages: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        key = tensor.storage.key
        if key not in storages:
            entry = entries.get(f"{root}data/{key}")
            if entry is None:
                raise UserError(f"{path}: the storage of tensor {name!r} is not in the archive.")
            storages[key] = _entry_bytes(path, raw, entry)
    return {
        name: _strided_view(path, name, tensor, storages[tensor.storage.key])
        for name, tensor in state.items()
    }


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    items: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateUnpickler(pickle.Unpickler):
    """Unpickler of state dicts: globals off its list are an error, tensors become records."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        # Bound methods: a pickle can set no attribute on them that outlives this unpickler.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        raise pickle.UnpicklingError(
            f"refused, it asks for {module}.{name}, which a file of tensors does not need and "
            "which could run code; use a safetensors file"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown reference {pid!r:.80}")
        _, dtype, key, _, items = pid
        if (
            not isinstance(dtype, np.dtype)
            or type(key) is not str
            or not safetensors.are_naturals([items])
        ):
            raise pickle.UnpicklingError(f"unknown storage {pid!r:.80}")
        return _Storage(dtype, key, items)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_unused: Any
    ) -> _Tensor:
        known = isinstance(storage, _Storage) and safetensors.are_naturals([offset])
        if (
            not known
            or not safetensors.are_naturals(shape)
            or not safetensors.are_naturals(strides)
        ):
            raise pickle.UnpicklingError("a tensor's shape, strides or offset are not numbers >= 0")
        if len(shape) != len(strides):
            raise pickle.UnpicklingError(f"shape {shape} has other axes than strides {strides}")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor: Any, *_unused: Any) -> Any:
        return tensor


def _archive(path: Path, raw: np.ndarray) -> tuple[dict[str, zipfile.ZipInfo], str, bytes]:
    """The archive's entries, the prefix of their names, and the pickle."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = {entry.filename: entry for entry in file.infolist()}
    except Exception as error:  # damage can end in any exception
        raise UserError(f"{path}: {_not_a_zip(raw)}") from error
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
    if order is not None and _entry_bytes(path, raw, order).tobytes() != b"little":
        raise UserError(
            f"{path}: its byte order is not little-endian; save it again on x86 or ARM."
        )
    pickled = _entry_bytes(path, raw, entries[pickles[0]]).tobytes()
    if zlib.crc32(pickled) != entries[pickles[0]].CRC:
        raise UserError(f"{path}: the checksum of its pickle is wrong: the file is corrupt.")
    return entries, root, pickled


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


def _refuse_other_values(path: Path, state: Any) -> None:
    if type(state) not in (dict, collections.OrderedDict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a state dict of tensors.")
    others = [
        f"{name!r}: {type(value).__name__}"
        for name, value in state.items()
        if not isinstance(name, str) or not isinstance(value, _Tensor)
    ]
    if others:
        raise UserError(
            f"{path}: a state dict maps names to tensors, but this holds {', '.join(others[:8])}."
        )


def _entry_bytes(path: Path, raw: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    # The local header repeats the name and may carry other padding than the central directory.
    header = raw[entry.header_offset : entry.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path}: entry {entry.filename!r} has no header: the file is corrupt.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > raw.size:
        raise UserError(f"{path}: entry {entry.filename!r} ends after the file: truncated.")
    return raw[start : start + entry.file_size]


def _strided_view(path: Path, name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    dtype, _, items = tensor.storage
    if items * dtype.itemsize != storage.size:
        raise UserError(
            f"{path}: tensor {name!r} needs a storage of {items} x {dtype.itemsize} bytes, the "
            f"archive holds {storage.size}."
        )
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset + reach >= items:
        raise UserError(
            f"{path}: tensor {name!r} (shape {tensor.shape}, strides {tensor.strides}, offset "
            f"{tensor.offset}) reaches outside its storage of {items} items: refused."
        )
    try:
        return np.ndarray(
            tensor.shape,
            dtype,
            buffer=storage,
            offset=tensor.offset * dtype.itemsize,
            strides=tuple(step * dtype.itemsize for step in tensor.strides),
        )
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: tensor {name!r} of shape {tensor.shape}: {error}.") from error
