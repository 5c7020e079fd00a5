"""Laws of tensor_files: what safetensors writes is read back bit for bit, and damage is named."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_jax.weights import safetensors as tensor_files

pytestmark = pytest.mark.unit

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: Any, data: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("dtype", tensor_files.SAFETENSORS_DTYPES.values(), ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: np.dtype) -> None:
    names = {dtype: name for name, dtype in tensor_files.SAFETENSORS_DTYPES.items()}
    content = np.arange(6).astype(dtype).reshape(2, 3)
    entry = {"dtype": names[dtype], "shape": [2, 3], "data_offsets": [0, content.nbytes]}
    path = written(tmp_path / "m.safetensors", {"w": entry}, content.tobytes())
    found = tensor_files.open_safetensors(path)["w"]
    assert found.dtype == dtype
    assert found.tobytes() == content.tobytes()


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(5).half(),
        "brain": torch.ones(3, 4).bfloat16(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
    }
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    found = tensor_files.open_safetensors(path)
    assert found.keys() == tensors.keys()
    assert found["brain"].dtype == ml_dtypes.bfloat16
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5))
def test_any_shapes_come_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("shapes") / "m.safetensors"
    random = np.random.default_rng(0)
    tensors = {
        f"t{i}": random.standard_normal(shape).astype("f2") for i, shape in enumerate(shapes)
    }
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, path)
    found = tensor_files.open_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_views_are_read_only(tmp_path: Path) -> None:
    found = tensor_files.open_safetensors(written(tmp_path / "m", {"w": ENTRY}, bytes(8)))
    with pytest.raises(ValueError, match="read-only"):
        found["w"][0] = 1


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": ENTRY}, bytes(7), "tensor 'w' ends at byte .*truncated"),
        ({"w": ENTRY}, bytes(9), "1 bytes after the last tensor"),
        (
            {"w": {**ENTRY, "shape": [3]}},
            bytes(8),
            r"'w' of shape \(3,\) .* needs 12 .* gives it 8",
        ),
        ({"w": {**ENTRY, "dtype": "F4"}}, bytes(8), "'w' has dtype 'F4'; readable are BOOL"),
        ({"w": {**ENTRY, "dtype": ["F4"]}}, bytes(8), "'w' has dtype .'F4'.; readable are"),
        ({"w": {**ENTRY, "shape": [-2]}}, bytes(8), "'w' has shape .-2. at bytes"),
        ({"w": {**ENTRY, "shape": [2.0]}}, bytes(8), "'w' has shape .2.0."),
        ({"w": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "gives it -8"),
        ({"w": {**ENTRY, "data_offsets": [8]}}, bytes(8), "at bytes .8."),
        ({"w": {"dtype": "F32"}}, bytes(8), "'w' lacks dtype, shape or data_offsets"),
        ({"w": 3}, bytes(8), "'w' lacks"),
        ({"w": ENTRY, "x": ENTRY}, bytes(8), "'x' overlaps another tensor"),
        ({"w": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "'w' follows unused bytes"),
        ([1], b"", "not a JSON object"),
        (b"{", b"", "safetensors header is not JSON"),
        (b"[" * 100_000, b"", "nested too deeply"),
        (b"\xff\xfe", b"", "not UTF-8"),
        (b'{"a": 1, "a": 2}', b"", "not JSON: 'a' occurs twice"),
    ],
)
def test_refuses_a_damaged_header_naming_file_and_tensor(
    tmp_path: Path, header: Any, data: bytes, message: str
) -> None:
    path = written(tmp_path / "m.safetensors", header, data)
    with pytest.raises(ValueError, match=rf"m\.safetensors: .*{message}"):
        tensor_files.open_safetensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "Git LFS pointer.*lfs pull",
        ),
        (b"1234", "4 bytes are too few"),
        (
            struct.pack("<Q", 2**63) + b"{}",
            "header claims 9223372036854775808 bytes of a file of 10",
        ),
    ],
)
def test_refuses_what_is_no_safetensors_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tensor_files.open_safetensors(path)


def test_refuses_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="m: no such file"):
        tensor_files.map_bytes(tmp_path / "m")


def test_real_checkpoint_equals_the_library(data: Path) -> None:
    path = data / "weights" / "tinystories-656k" / "model.safetensors"
    expected = safetensors.numpy.load_file(path)
    found = tensor_files.open_safetensors(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
