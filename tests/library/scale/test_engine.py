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

import pyarrow as pa
import pytest
from pyarrow import parquet

from prompteol_jax.models import tiny

pytest.importorskip("ray", reason="the extra `ray` is not installed")

# On loopback, without a token file and a report of usage.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    **{"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
}
SHARDS = 16
WORKERS = Path(__file__).resolve().parents[2] / "support" / "ray_workers.py"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of four files of three shards each, and one of four."""
    folder = tmp_path_factory.mktemp("texts")
    words = random.Random(0)
    for n in range(5):
        rows = [" ".join(words.choices(tiny.WORDS, k=6)) for _ in range(90 if n < 4 else 120)]
        if n < 4:
            parquet.write_table(pa.table({"text": rows}), folder / f"{n}.parquet")
        else:
            lines = [json.dumps({"text": row}) for row in rows]
            (folder / f"{n}.jsonl").write_text("\n".join(lines))
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
    assert "480 encoded, " in said and "by 1 workers, 0 shards retried" in said
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
    assert 3 <= int(re.search(r"(\d+) of 16 shards were there", said)[1]) <= SHARDS
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


def drive(kind, texts, output, *flags, of=(), status=0):
    """Run the command with other workers, or on a cluster; what it said, and its figures."""
    command = [sys.executable, WORKERS, kind, *of, "--", "--model", "tiny", "--dtype", "float32"]
    command += ["--shard-rows", "30", "--input", texts, "--output", output, *flags]
    on_loopback = ENVIRONMENT | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [str(word) for word in command],
        env=on_loopback,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == status, done.stderr
    return done.stderr.splitlines()[-1], done.stdout.splitlines()


@pytest.mark.slow
def test_a_killed_node_is_replaced_and_no_shard_is_lost(texts, plain, tmp_path):
    cluster = ("--nodes", "3", "1", "--kill-after", "2")
    said, lines = drive("slow", texts, tmp_path / "v", "--workers", "2", of=cluster)
    killed = int(re.search(r"killed a node with (\d+) shards entered", "".join(lines))[1])
    assert 2 <= killed < SHARDS
    assert "480 encoded" in said
    assert content(tmp_path / "v") == plain
    assert json.loads(lines[-1])["backend"] is False, "the driver has started jax"


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [16, 4])
def test_a_shard_that_ends_its_workers_is_named_and_the_others_are_kept(
    texts, plain, tmp_path, tasks
):
    folder = tmp_path / "v"
    several = ("--tasks", str(tasks))
    said, _ = drive("ends", texts, folder, "--workers", "1", of=several, status=2)
    found = re.search(
        r"shard 00002 \(0.parquet, 30 texts\) ended its worker 11 times.*; (\d+)", said
    )
    assert found, said
    said = encode(texts, folder)
    assert f"{found[1]} of 16 shards were there" in said or found[1] == "0"
    assert content(folder) == plain


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "workers"), [("1x1", 4), ("2x1", 2), ("4x1", 1)])
def test_each_worker_sees_the_chips_of_its_mesh(texts, tmp_path, mesh, workers):
    flags = ("--mesh", mesh, "--device", "tpu", "--workers", str(workers))
    drive("chips", texts, tmp_path / "v", *flags, of=("--nodes", "6", "--tpus", "4"))
    found = [json.loads(path.read_text()) for path in tmp_path.glob("chips-*.json")]
    seen = [one.get("TPU_VISIBLE_CHIPS") for one in found]
    assert len(found) == workers, found
    if workers > 1:  # one worker with all chips of a host gets no bounds
        assert sorted(",".join(seen).split(",")) == ["0", "1", "2", "3"]


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
