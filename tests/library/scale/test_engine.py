"""Either engine writes the same bytes, and finishes what the other began, whoever is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompteol_jax.models import tiny

pytest.importorskip("ray", reason="the extra `ray` is not installed")

# On loopback, without a token file and a report of usage.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    **{"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
}
SHARDS = 8


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of two files, of four shards each."""
    folder = tmp_path_factory.mktemp("texts")
    words = random.Random(0)
    for name in ("a.txt", "b.jsonl"):
        rows = [" ".join(words.choices(tiny.WORDS, k=6)) for _ in range(120)]
        lines = rows if name == "a.txt" else [json.dumps({"text": row}) for row in rows]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def start(texts, output, *flags, **environment):
    command = [sys.executable, "-m", "prompteol_jax.cli", "encode", "--model", "tiny"]
    command += ["--dtype", "float32", "--shard-rows", "30", "--input", texts, "--output", output]
    return subprocess.Popen(
        [*command, *flags], env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True
    )


def encode(texts, output, *flags, status=0, **environment):
    process = start(texts, output, *flags, **environment)
    said = process.communicate(timeout=500)[1]
    assert process.returncode == status, said
    return said.splitlines()[-1]


RAY = ("--engine", "ray", "--workers", "1")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def plain(texts, tmp_path_factory):
    """The files of a plain run."""
    folder = tmp_path_factory.mktemp("plain") / "vectors"
    encode(texts, folder)
    assert len(content(folder)) == SHARDS + 1
    return content(folder)


@pytest.mark.slow
def test_ray_writes_the_bytes_of_a_plain_run(texts, plain, tmp_path):
    said = encode(texts, tmp_path / "v", *RAY)
    assert "240 encoded, " in said and "by 1 workers, 0 shards retried" in said
    assert content(tmp_path / "v") == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [(RAY, ()), ((), RAY)], ids=["ray-plain", "plain-ray"]
)
def test_a_killed_driver_is_continued_by_the_other_engine(texts, plain, tmp_path, first, second):
    folder = tmp_path / "v"
    process = start(texts, folder, *first)
    until(lambda: entered(folder) >= 3, process)
    process.kill()
    process.communicate()
    said = encode(texts, folder, *second)
    assert 3 <= int(re.search(r"(\d+) of 8 shards were there", said)[1]) <= SHARDS
    assert content(folder) == plain


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_no_shard_is_lost(texts, plain, tmp_path):
    folder = tmp_path / "v"
    process = start(texts, folder, *RAY)
    until(lambda: entered(folder) >= 2, process)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    assert content(folder) == plain
    assert "by 2 workers" in said


@pytest.mark.slow
def test_a_cluster_without_room_is_one_line(texts, tmp_path):
    said = encode(texts, tmp_path / "v", *RAY, "--device", "tpu", status=2)
    assert said == (
        "prompteol: error: no node of the cluster has 1 TPU (the largest: 0); give a smaller --mesh"
    )


def entered(folder):
    journal = folder / "journal.0.jsonl"
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def until(condition, process):
    for _ in range(20_000):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def worker_of(driver):
    """The process of the worker that encodes, which Ray started for this driver."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = b"MapWorker" in (folder / "cmdline").read_bytes()
            if is_worker and driver in ancestors(int(folder.name)):
                return int(folder.name)
        except OSError:
            continue  # it has ended
    raise AssertionError("no worker was found")


def ancestors(pid):
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found
