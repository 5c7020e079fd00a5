"""Laws of a run in a bucket: it is the run on this machine, and a kill costs it nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest
from ports import free_port

from prompteol_jax import Embedder
from prompteol_jax.storage import paths
from train import contrastive, prepare
from train.config import STOPPED, TrainConfig
from train.run.checkpoints import Checkpoints

FLAGS = dict(batch=8, rank=4, save_every=2, eval_every=2)
FILES = ("best.json", "config.json", "dev.jsonl", "metrics.jsonl", "report.html")
ADAPTER = "adapter/adapter_model.safetensors"
TIMES = ("step_s", "sentences_per_s")


def metrics(text):
    records = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def state(step):
    return {"a": jax.numpy.arange(6.0) + step, "empty": jax.numpy.zeros((0, 2))}


def steps_of(bucket, folder="c"):
    return sorted(n for n in bucket.objects if n.startswith(folder) and n.endswith("manifest.json"))


def test_checkpoints_are_kept_replaced_and_restored(bucket, tmp_path):
    folder = paths.as_path("gs://bucket/c")
    with closing(Checkpoints(folder)) as checkpoints:
        for step in (1, 2, 3, 2):
            checkpoints.save(step, state(step), {"step": step})
        step, restored, meta = checkpoints.restore(state(0))
    assert (step, meta, checkpoints.steps()) == (2, {"step": 2}, [2])
    np.testing.assert_array_equal(restored["a"], state(2)["a"])
    # A copy of the folder is a checkpoint on any disk.
    assert Checkpoints(paths.local_copy(folder)).restore(state(0))[0] == 2


def test_the_manifest_is_the_last_object_of_a_step_and_the_first_to_go(bucket):
    with closing(Checkpoints(paths.as_path("gs://bucket/c"), keep=1)) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.wait()
        newest = max(bucket.objects, key=lambda name: bucket.objects[name][0])
        assert newest == "c/1/manifest.json"
        bucket.log.clear()
        checkpoints.save(2, state(2), {})
    gone = [path.partition("/o/")[2] for method, path in bucket.log if method == "DELETE"]
    assert next(name for name in gone if name.startswith("c/1/")) == "c/1/manifest.json"


@pytest.mark.parametrize("harm", ["unsealed", "changed", "lost"])
def test_a_step_that_is_not_what_was_written_is_passed_over(bucket, harm):
    folder = paths.as_path("gs://bucket/c")
    with closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.save(2, state(2), {})
    name = next(name for name in bucket.objects if name.startswith("c/2/state/d/"))
    if harm == "unsealed":
        del bucket.objects["c/2/manifest.json"]
    elif harm == "lost":
        del bucket.objects[name]
    else:
        content = bucket.objects[name][1]
        bucket.put(name, bytes([content[0] ^ 1]) + content[1:])
    with closing(Checkpoints(folder)) as checkpoints:
        assert checkpoints.restore(state(0))[0] == 1
        checkpoints.save(2, state(2), {})
    assert Checkpoints(folder).restore(state(0))[0] == 2


@pytest.mark.slow
def test_a_run_reads_and_writes_buckets(bucket, coarse, capsys):
    rows = "".join(f"I see {n}.,There is {n}.,Nobody sees {n}.\n" for n in range(40))
    bucket.put("nli.csv", f"sent0,sent1,hard_neg\n{rows}".encode())
    prepare.main(["triplets", "--input=gs://bucket/nli.csv", "--output=gs://bucket/prepared"])
    assert "gs://bucket/prepared/triplets/1.0.0: 40 triplets" in capsys.readouterr().err
    config = TrainConfig(
        **FLAGS,
        data="gs://bucket/prepared",
        steps=2,
        output=Path("gs://bucket/run"),
        json=Path("gs://bucket/deep/result.json"),
    )
    result = contrastive.run(config)
    assert json.loads(bucket.objects["deep/result.json"][1]) == result
    run = paths.local_copy("gs://bucket/run")
    tops = {name.split("/")[0] for name in paths.files(run)}
    assert tops == {*FILES, "adapter", "checkpoints", "tensorboard"}
    assert json.loads((run / "config.json").read_text())["output"] == "gs://bucket/run"
    with pytest.raises(FileExistsError, match="gs://bucket/run holds a run already"):
        contrastive.run(config)
    with pytest.raises(FileNotFoundError, match="gs://others/run: there is no bucket others"):
        contrastive.run(dataclasses.replace(config, output=Path("gs://others/run")))
    vectors = [
        Embedder.from_pretrained("tiny", name, dtype="float32").encode(["A man sleeps."])
        for name in ("gs://bucket/run", str(run))
    ]
    np.testing.assert_array_equal(*vectors)


LONG = ["--steps=80", "--batch=8", "--rank=4", "--save-every=5", "--eval-every=20"]
TRAIN = [sys.executable, "-m", "train.contrastive", *LONG]


def kill_when_saved(bucket, run, processes, kill=signal.SIGKILL):
    """End processes once the run's first checkpoint is there; they must not be done by then."""
    while not steps_of(bucket, f"{run}/checkpoints/"):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    for process in processes:
        process.send_signal(kill)
    return {process.wait() for process in processes}


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_in_a_bucket_ends_with_the_same_bits(bucket, tmp_path):
    local = tmp_path / "run"
    whole = subprocess.run([*TRAIN, f"--output={local}"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    for kill, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, STOPPED)):
        # The one command of a job that may be started again.
        command = [*TRAIN, f"--output=gs://bucket/{kill.name}", "--resume"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            assert kill_when_saved(bucket, kill.name, [process], kill) == {status}
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert bucket.objects[f"{kill.name}/{ADAPTER}"][1] == (local / ADAPTER).read_bytes()
        found = bucket.objects[f"{kill.name}/metrics.jsonl"][1].decode()
        assert metrics(found) == metrics((local / "metrics.jsonl").read_text())
        assert bucket.objects[f"{kill.name}/report.html"][1]


@pytest.mark.slow
def test_processes_that_share_no_disk_share_a_bucket(bucket, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def start(run):
        port = free_port()
        shared = ["--mesh=2x2", f"--output=gs://bucket/{run}", "--resume", "--processes=2"]
        return [
            subprocess.Popen(
                [*TRAIN, *shared, f"--coordinator=127.0.0.1:{port}", f"--process={i}"],
                env=environment | {"XDG_CACHE_HOME": str(tmp_path / f"host{i}")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for i in range(2)
        ]

    kill_when_saved(bucket, "run", start("run"))
    for run in ("run", "whole"):
        assert {process.wait(timeout=400) for process in start(run)} == {0}
    assert bucket.objects[f"run/{ADAPTER}"][1] == bucket.objects[f"whole/{ADAPTER}"][1]
    found, whole = (bucket.objects[f"{n}/metrics.jsonl"][1].decode() for n in ("run", "whole"))
    assert metrics(found) == metrics(whole)
