"""Several processes share a corpus; the vectors are those of one."""

import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from ports import free_port

from prompteol_jax.models import tiny

TEXTS = [*("A man is playing a guitar.", "the cat sleeps", "", "two  spaces", "the dog runs")] * 3


def start(texts, output, *flags, processes=1):
    """Start the command, in so many processes at once."""
    common = ["--model", "tiny", "--dtype", "float32", "--shard-rows", "2", "--input", texts]
    common += ["--output", output, *flags]
    address = f"127.0.0.1:{free_port()}"
    return [
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


def encode(texts, output, *flags, processes=1):
    """Run the command to its end; what each process said."""
    started = start(texts, output, *flags, processes=processes)
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return said


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.mark.slow
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


# On meshes of one shape rows are computed in equal programs, so vectors are equal bit for bit.
@pytest.mark.slow
@pytest.mark.parametrize(("processes", "after", "atol"), [(1, "1x1", 1e-5), (2, "1x1", 0.0)])
def test_a_run_killed_on_one_mesh_goes_on_with_another(tmp_path, processes, after, atol):
    many = tmp_path / "many.txt"
    words = random.Random(0)
    many.write_text("\n".join(" ".join(words.choices(tiny.WORDS, k=5)) for _ in range(160)))
    encode(many, tmp_path / "alone.npy")
    folder = tmp_path / "vectors"
    started = start(many, folder, "--mesh", "2x1", processes=processes)
    while not (folder / "shard-00009.npy").exists():
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    for process in started:
        process.kill()
        process.communicate()
    kept = {path.name: path.read_bytes() for path in folder.glob("shard-*.npy")}
    (said,) = encode(many, folder, "--mesh", after)
    there = int(re.search(r"(\d+) of 80 shards were there", said)[1])
    assert 0 < there <= len(kept)
    same = sum((folder / name).read_bytes() == content for name, content in kept.items())
    assert same >= there
    shards = [np.load(path) for path in sorted(folder.glob("shard-*.npy"))]
    alone = np.load(tmp_path / "alone.npy")
    np.testing.assert_allclose(np.concatenate(shards), alone, rtol=0, atol=atol)
