"""Laws of torch_files: what torch.load gives, from mapped bytes, and nothing ever runs."""

import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from prompteol_jax.weights import torch_bin

pytestmark = pytest.mark.unit

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


STATES = {
    "float16": {"w": BASE.half()},
    "bfloat16": {"w": BASE.bfloat16(), "b": BASE[0].bfloat16()},
    "float64": {"w": BASE.double()},
    "integers": {"a": BASE.long(), "b": BASE.int(), "c": BASE.byte(), "d": BASE > 3},
    "transposed": {"w": BASE.T, "sliced": BASE[1:3, ::2], "expanded": BASE[0].expand(5, 6)},
    "scalar and empty": {"s": torch.tensor(2.5), "e": torch.empty(0, 3)},
    "parameters": OrderedDict(w=torch.nn.Parameter(BASE.clone()), b=BASE[:, 0]),
    "module": torch.nn.Linear(3, 2).state_dict(),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_reads_what_torch_load_reads(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = saved(tmp_path / "m.bin", state)
    expected = torch.load(path, weights_only=True)
    found = torch_bin.open_bin(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert found[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found[name].astype(np.float32), as_numpy(tensor))


def test_tied_tensors_are_one_storage_and_strides_stay(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.bin", {"a": BASE, "b": BASE, "t": BASE.T})
    found = torch_bin.open_bin(path)
    assert np.shares_memory(found["a"], found["b"])
    assert np.shares_memory(found["a"], found["t"])
    assert found["t"].strides == (4, 24)


def test_views_are_read_only(tmp_path: Path) -> None:
    found = torch_bin.open_bin(saved(tmp_path / "m.bin", {"w": BASE}))
    with pytest.raises(ValueError, match="read-only"):
        found["w"][0, 0] = 1


class Attack:
    """Unpickles to a call of whatever it was given."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def archive(path: Path, pickled: bytes, storage: bytes = b"", **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/data/0", storage)
        for name, content in extra.items():
            file.writestr(f"m/{name}", content)
    return path


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Attack(__import__("os").system, "touch PWNED"), r"(posix|nt)\.system"),
        (Attack(eval, "open('PWNED', 'w')"), r"__builtin__\.eval"),
        (Attack(__import__, "os"), r"__builtin__\.__import__"),
        (Attack(getattr, "", "join"), r"__builtin__\.getattr"),
        (torch.float16, r"torch\.float16"),
        (torch.nn.Linear, r"torch\.nn\.modules\.linear\.Linear"),
        (Attack(torch._utils._rebuild_parameter_with_state, 1), r"_rebuild_parameter_with_state"),
    ],
)
def test_refuses_every_other_global_by_name_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "m.bin", pickle.dumps({"w": value}, 2))
    with pytest.raises(ValueError, match=f"m.bin: .* refused, it asks for .*{named}"):
        torch_bin.open_bin(path)
    assert not (tmp_path / "PWNED").exists()


def state_pickle(
    *, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], items: int = 6
) -> bytes:
    """A pickle of one float32 tensor "w" as torch.save writes it, with any geometry."""

    def body(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + body(items)
        + b"tQ"
        + body(offset)
        + body(shape)
        + body(strides)
        + b"\x89NtRs."
    )


def test_hand_made_geometry_is_read(tmp_path: Path) -> None:
    content = np.arange(6, dtype=np.float32)
    pickled = state_pickle(offset=1, shape=(2, 2), strides=(2, 1))
    found = torch_bin.open_bin(archive(tmp_path / "m.bin", pickled, content.tobytes()))
    np.testing.assert_array_equal(found["w"], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"offset": 0, "shape": (7,), "strides": (1,)}, "'w' .* reaches outside its storage of 6"),
        ({"offset": 6, "shape": (1,), "strides": (1,)}, "reaches outside"),
        ({"offset": 0, "shape": (2,), "strides": (6,)}, "reaches outside"),
        ({"offset": 0, "shape": (2, 2), "strides": (10**18, 1)}, "reaches outside"),
        ({"offset": -1, "shape": (2,), "strides": (1,)}, "not numbers >= 0"),
        ({"offset": 1, "shape": (2,), "strides": (-1,)}, "not numbers >= 0"),
        ({"offset": 0, "shape": (-2,), "strides": (1,)}, "not numbers >= 0"),
        ({"offset": 0, "shape": (2, 2), "strides": (1,)}, "other axes than strides"),
        (
            {"offset": 0, "shape": (1,), "strides": (1,), "items": 9},
            "'w' needs a storage of 9 x 4 bytes",
        ),
        ({"offset": 0, "shape": (2**62, 2**62), "strides": (0, 0)}, "tensor 'w' of shape"),
    ],
)
def test_refuses_a_tensor_that_leaves_its_storage(
    tmp_path: Path, geometry: dict[str, object], message: str
) -> None:
    path = archive(tmp_path / "m.bin", state_pickle(**geometry), bytes(24))
    with pytest.raises(ValueError, match=message):
        torch_bin.open_bin(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"w": 3, "epoch": "x"}, "'w': int, 'epoch': str"),
        ({"model": {"w": 1}}, "'model': dict"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        torch_bin.open_bin(saved(tmp_path / "m.bin", value))


def test_refuses_the_format_before_1_6(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    torch.save({"w": BASE}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before version 1\.6.*convert it to safetensors"):
        torch_bin.open_bin(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_refuses_a_truncated_file(tmp_path: Path, kept: float) -> None:
    path = saved(tmp_path / "m.bin", {"w": torch.ones(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        torch_bin.open_bin(path)


def test_refuses_compressed_entries(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", pickle.dumps({}))
    with pytest.raises(ValueError, match="'m/data.pkl' is compressed"):
        torch_bin.open_bin(path)


def test_refuses_other_archives_and_byte_orders(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme", b"")
    with pytest.raises(ValueError, match=r"not one that torch\.save wrote"):
        torch_bin.open_bin(path)
    archive(path, pickle.dumps({}), byteorder=b"big")
    with pytest.raises(ValueError, match="not little-endian"):
        torch_bin.open_bin(path)


def test_refuses_corrupt_pickles_and_missing_storages(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with pytest.raises(ValueError, match=r"m\.bin: not a readable state dict"):
        torch_bin.open_bin(archive(path, b"\x80\x02}q"))
    good = state_pickle(offset=0, shape=(1,), strides=(1,))
    with pytest.raises(ValueError, match="storage of tensor 'w' is not in the archive"):
        torch_bin.open_bin(
            archive(path, good.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"))
        )


def test_refuses_a_storage_whose_local_header_points_past_the_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", state_pickle(offset=0, shape=(1,), strides=(1,)), bytes(24))
    content = bytearray(path.read_bytes())
    at = zipfile.ZipFile(path).getinfo("m/data/0").header_offset
    content[at + 28 : at + 30] = struct.pack("<H", 65000)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="'m/data/0' ends after the file"):
        torch_bin.open_bin(path)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_crash(tmp_path: Path, seed: int) -> None:
    """A damaged file is a ValueError or still tensors: never another exception."""
    path = saved(tmp_path / "m.bin", {"w": BASE, "b": BASE.T.half()})
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for at in random.integers(0, len(content), 12):
        content[at] = random.integers(256)
    path.write_bytes(bytes(content))
    try:
        found = torch_bin.open_bin(path)
    except ValueError as error:
        assert "m.bin" in str(error)
    else:
        assert all(float(tensor.astype(np.float32).size) >= 0 for tensor in found.values())


def test_refuses_views_that_repeat_a_small_file(tmp_path: Path) -> None:
    pickled = state_pickle(offset=0, shape=(2**30,), strides=(0,))
    with pytest.raises(ValueError, match="repeat the same bytes too often"):
        torch_bin.open_bin(archive(tmp_path / "m.bin", pickled, bytes(24)))


def test_refuses_a_negated_view(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.bin", {"w": torch._neg_view(BASE)})
    with pytest.raises(ValueError, match=r"m\.bin: .* stored with the flag 'neg'"):
        torch_bin.open_bin(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_an_archive_with_a_name_twice(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", pickle.dumps({}, 2), **{"data.pkl": b"other"})
    with pytest.raises(ValueError, match="two entries of the archive have one name"):
        torch_bin.open_bin(path)


def test_refuses_an_archive_of_which_the_directory_is_the_most(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(300):
            entry = zipfile.ZipInfo(f"{number}")
            entry.comment = bytes(60_000)
            file.writestr(entry, b"")
    with pytest.raises(ValueError, match="directory is longer than 16777216 bytes"):
        torch_bin.open_bin(path)
