"""Laws of processes: two of four devices, and four of two, are one of eight."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from ports import free_port

from prompteol_jax import Embedder, axes, distributed
from prompteol_jax.mesh import make_mesh

TEXTS = ["A man is washing a car.", "", "The doctor reads (a book)!", "One two three."] * 3
# One process of a run; then, still joined, its part of an encoding. It notes the rows that it reads
# and the files of the run that it makes or changes.
_PROCESS = """
import json, os, sys
import numpy as np
from train import contrastive
from train.data import read

out, me = sys.argv[1], sys.argv[-1].removeprefix("--process=")
rows, written = [], []


def watch(event, arguments):
    writes = event in ("os.rename", "os.mkdir")
    if event == "open" and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and str(arguments[0]).startswith(out + os.sep):
        written.append(os.path.relpath(str(arguments[0]), out))


class Noted(list):
    def __getitem__(self, row):
        rows.append(row)
        return super().__getitem__(row)


def read_data(config, read_data=read.read_data):
    data = read_data(config)
    return data._replace(rows=Noted(data.rows))


read.read_data = read_data
sys.addaudithook(watch)
contrastive.main(sys.argv[2:])
with open(f"{{out}}.{{me}}.json", "w") as file:
    json.dump([rows, sorted(set(written))], file)

from prompteol_jax import Embedder, distributed

vectors = Embedder.from_pretrained("tiny", mesh={mesh!r}, dtype="float32").encode({texts!r})
np.save(f"{{out}}.{{me}}.npy", vectors)
"""


def run_together(out, mesh, processes):
    """Run a training in processes that share the devices of the mesh."""
    port = free_port()
    flags = "--batch 8 --steps 4 --rank 4 --dropout 0 --eval-every 2 --save-every 2".split()
    script = _PROCESS.format(texts=TEXTS, mesh=mesh)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    shared = [
        f"--mesh={mesh}",
        f"--processes={processes}",
        f"--output={out}",
        f"--json={out}.json",
        f"--coordinator=127.0.0.1:{port}",
    ]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(out), *flags, *shared, f"--process={i}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        ended = [child.communicate(timeout=400) for child in children]
    finally:
        for child in children:
            child.kill()
    assert not any(child.returncode for child in children), "\n".join(err for _, err in ended)
    return ended


def run_alone(out, mesh):
    from train import contrastive
    from train.config import TrainConfig

    config = TrainConfig(
        mesh=mesh,
        batch=8,
        steps=4,
        rank=4,
        dropout=0.0,
        eval_every=2,
        save_every=2,
        output=out,
    )
    return contrastive.run(config)


# With 1x2, two processes of one device hold half of every weight each, and read the same rows.
@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "processes"), [("8x1", 2), ("1x2", 2), ("4x2", 4)])
def test_processes_are_one(mesh, processes, tmp_path):
    ended = run_together(tmp_path / "two", mesh, processes)
    result = run_alone(tmp_path / "one", mesh)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two.keys() == result.keys()
    for name in ("dev_before", "dev_last", "loss"):
        np.testing.assert_allclose(two[name], result[name], rtol=1e-4)
    one, both = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [r["step"] for r in both] == [1, 2, 3, 4]  # only one process writes
    np.testing.assert_allclose([r["loss"] for r in both], [r["loss"] for r in one], rtol=1e-4)
    dev = (tmp_path / "two" / "dev.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in dev] == [0, 2, 4]
    assert sum("best weights" in stdout for stdout, _ in ended) == 1
    check_adapters(tmp_path)
    check_vectors(tmp_path, mesh, processes)
    check_shares(tmp_path, min(processes, int(mesh[0])))


def check_shares(folder, shares):
    """Of the 32 rows of four steps each process reads its own, and one process writes."""
    files = sorted(folder.glob("two.[0-9].json"))
    rows, written = zip(*(json.loads(file.read_text()) for file in files), strict=True)
    # Row 0 says which columns there are.
    assert all(len({*numbers} - {0}) in (32 // shares, 32 // shares - 1) for numbers in rows)
    assert len({number for numbers in rows for number in numbers} | {0}) in (32, 33)
    assert {"config.json", "metrics.jsonl", "dev.jsonl"} <= set(written[0])
    others = {path for paths in written[1:] for path in paths}
    # All of them write arrays; what they write becomes a checkpoint by the first one's hand.
    assert {path for path in others if ".saving" not in path} == set()


def check_adapters(folder):
    from safetensors.numpy import load_file

    one, two = (load_file(folder / n / "adapter/adapter_model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, atol=2e-5)


def check_vectors(folder, mesh, processes):
    expected = Embedder.from_pretrained("tiny", mesh=mesh, dtype="float32").encode(TEXTS)
    for process in range(processes):
        np.testing.assert_allclose(np.load(folder / f"two.{process}.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("dims", ["BT", "TF", "TD"], ids=["data", "model", "whole"])
def test_arrays_go_onto_the_mesh_and_come_back(dims):
    mesh = make_mesh((4, 2))
    array = np.arange(8 * 6, dtype=np.float32).reshape(8, 6)
    placed = distributed.to_global(array, axes.sharding(dims, array.shape, mesh))
    assert placed.sharding == axes.sharding(dims, array.shape, mesh)
    np.testing.assert_array_equal(distributed.to_host(placed), array)


def test_one_process_is_primary_and_waits_for_nobody():
    assert distributed.is_primary()
    distributed.wait_for_all("nobody")
    distributed.initialize(None, None, None)


@pytest.mark.parametrize(("processes", "process"), [(None, None), (2, None), (None, 0)])
def test_refuses_an_address_without_the_processes(processes, process):
    message = r"--coordinator h:1 needs --processes N and --process I \(0 to N-1\)"
    with pytest.raises(ValueError, match=message):
        distributed.initialize("h:1", processes, process)


def test_devices_are_simulated_only_before_jax_starts():
    code = (
        "import os\n"
        "from prompteol_jax import runtime\n"
        "runtime.simulate_devices(1)\n"
        "assert 'XLA_FLAGS' not in os.environ\n"
        "runtime.simulate_devices(6)\n"
        "import jax\n"
        "assert len(jax.devices()) == 6, jax.devices()\n"
        "runtime.simulate_devices(2)\n"
        "assert len(jax.devices()) == 6\n"
        "assert os.environ['XLA_FLAGS'].count('terminate_timeout_seconds=3600') == 1\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_simulated_devices_wait_for_each_other_as_long_as_the_user_says():
    """XLA ends a process one of whose devices keeps the others waiting."""
    code = (
        "from prompteol_jax import runtime\n"
        "runtime.simulate_devices(2)\n"
        "import time, jax, jax.numpy as jnp\n"
        "from jax.sharding import NamedSharding, PartitionSpec as P\n"
        "mesh = jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))\n"
        "def late(x):\n"
        "    time.sleep(5 if x.sum() else 0)\n"
        "    return x\n"
        "def total(x):\n"
        "    x = jax.pure_callback(late, jax.ShapeDtypeStruct(x.shape, x.dtype), x)\n"
        "    return jax.lax.psum(x, 'd')\n"
        "total = jax.jit(jax.shard_map(total, mesh=mesh, in_specs=P('d'), out_specs=P()))\n"
        "x = jax.device_put(jnp.arange(2.0), NamedSharding(mesh, P('d')))\n"
        "assert total(x).tolist() == [1.0]\n"
    )
    ended = []
    short = "--xla_cpu_collective_call_{}_timeout_seconds=1"
    for flags in (f"{short.format('warn_stuck')} {short.format('terminate')}", ""):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=100,
        )
        ended.append((done.returncode, "Termination timeout" in done.stderr))
    assert ended == [(-signal.SIGABRT, True), (0, False)]


def test_jax_still_has_the_names_that_are_used_without_being_public():
    """Holds for the versions that pyproject allows; a newer jax that moves them fails here."""
    state = distributed._jax_state()
    assert {"client", "coordinator_address"} <= vars(state).keys() | vars(type(state)).keys()
    from jax._src.lib import _jax

    client = _jax.DistributedRuntimeClient
    for name in ("key_value_set", "blocking_key_value_get", "key_value_delete"):
        assert callable(getattr(client, name))
