"""Several processes share a corpus; the vectors are those of one."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

TEXTS = [*("A man is playing a guitar.", "the cat sleeps", "", "two  spaces", "the dog runs")] * 3


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def encode(texts, output, *flags, processes=1):
    """Run the command, in so many processes at once; what each of them said."""
    common = ["--model", "tiny", "--dtype", "float32", "--shard-rows", "2", "--input", texts]
    common += ["--output", output, *flags]
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "prompteol_jax.cli", "encode", *common]
            + ["--coordinator", address, "--processes", str(processes), "--process", str(process)]
            * (processes > 1),
            env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return said


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


def test_two_processes_give_the_file_of_one(texts, tmp_path):
    first, second = encode(texts, tmp_path / "two.npy", "--mesh", "2x1", processes=2)
    encode(texts, tmp_path / "one.npy")
    one, two = (np.load(tmp_path / name) for name in ("one.npy", "two.npy"))
    assert one.shape == (len(TEXTS), 128)
    np.testing.assert_array_equal(two, one)
    assert "float32 [15, 128]; 8 encoded by the first of 2 processes" in first
    assert "encoded" not in second
    assert sorted(path.name for path in tmp_path.glob("*.npy*")) == ["one.npy", "two.npy"]


@pytest.mark.slow
def test_processes_that_cannot_share_a_mesh_say_so(texts, tmp_path):
    with pytest.raises(AssertionError, match="data = 1 must be a multiple of 2"):
        encode(texts, tmp_path / "two.npy", "--mesh", "1x2", processes=2)
