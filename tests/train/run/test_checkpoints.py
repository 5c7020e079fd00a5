"""Laws of checkpoints: what is there is complete and unaltered, whatever happened."""

import itertools
import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ports import free_port

from train.run import step_folders
from train.run.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[3]


def make_mesh(shape):
    devices = jax.devices()[: shape[0] * shape[1]]
    return jax.make_mesh(
        shape, ("data", "model"), axis_types=(AxisType.Explicit,) * 2, devices=devices
    )


def make_state(step, mesh=None):
    """The state of a small run: LoRA leaves, one of them empty, an optimizer and a key."""
    weights = jnp.arange(8 * 4, dtype=jnp.float32).reshape(8, 4) + step
    if mesh is not None:
        weights = jax.device_put(weights, NamedSharding(mesh, P("data", "model")))
    lora = {"a": weights, "b": jnp.full(6, step, jnp.bfloat16), "blocks": jnp.zeros((0, 8, 2))}
    optimizer = optax.adamw(1e-3).init(lora)
    return {
        "lora": lora,
        "optimizer": optimizer,
        "key": jax.random.key(step),
        "step": jnp.asarray(step, jnp.int32),
    }


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def saved(folder, *steps, keep=2):
    with closing(Checkpoints(folder, keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step})
    return checkpoints


def restored_step(folder):
    step, state, meta = Checkpoints(folder).restore(make_state(0))
    assert_same(state, make_state(step))
    assert meta == {"position": step}
    return step


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_round_trip_keeps_structure_bits_types_and_meta(tmp_path):
    meta = {"position": {"epoch": 1, "row": 3}, "best": 81.25, "digest": "é", "none": None}
    with closing(Checkpoints(tmp_path / "new" / "checkpoints")) as checkpoints:
        checkpoints.save(7, make_state(7), meta)
        step, state, again = checkpoints.restore(make_state(0))
    assert (step, again) == (7, meta)
    assert_same(state, make_state(7))
    assert type(state["optimizer"][0]) is type(make_state(0)["optimizer"][0])


def test_round_trip_of_a_flax_state_and_its_abstract_form(tmp_path):
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.arange(6.0).reshape(2, 3))
            self.parts = nnx.List([nnx.Param(jnp.ones(2))])

    state = nnx.state(Model())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(0, state, {})
        _, restored, _ = checkpoints.restore(like)
    assert isinstance(restored, nnx.State)
    assert_same(restored, state)


@pytest.mark.parametrize("target", [(1, 1), (2, 4), (8, 1), (2, 2)])
def test_restores_bit_equal_onto_another_mesh(tmp_path, target):
    source, mesh = make_mesh((4, 2)), make_mesh(target)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(3, make_state(3, source), {})
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            make_state(0, mesh),
        )
        _, state, _ = checkpoints.restore(like)
    assert_same(state, make_state(3))
    assert state["lora"]["a"].sharding == NamedSharding(mesh, P("data", "model"))
    assert state["optimizer"][0].mu["a"].sharding == like["optimizer"][0].mu["a"].sharding


def test_arrays_may_be_donated_after_save(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    x = jnp.arange(1 << 20, dtype=jnp.float32)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, {"x": x}, {})
        for _ in range(3):
            x = overwrite(x)
        _, state, _ = checkpoints.restore({"x": x})
    np.testing.assert_array_equal(state["x"], np.arange(1 << 20, dtype=np.float32))


def test_a_save_returns_while_its_writer_is_held_up_and_the_next_one_waits(tmp_path, monkeypatch):
    """Nothing but the copy is left to the thread that trains, not even the first look at a disk."""
    free, begun = threading.Event(), threading.Event()
    sweep = step_folders.sweep

    def held(folder, staged):
        begun.set()
        assert free.wait(60)
        sweep(folder, staged)

    monkeypatch.setattr(step_folders, "sweep", held)
    overwrite = jax.jit(lambda x: x * 0, donate_argnums=0)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        state = {"x": jnp.arange(8.0)}
        checkpoints.prepare(state)
        assert not checkpoints.busy()
        checkpoints.save(1, state, {})
        assert begun.wait(60)
        overwrite(state["x"])
        assert checkpoints.busy()
        assert list(tmp_path.iterdir()) == []
        later = threading.Timer(0.2, free.set)
        later.start()
        checkpoints.save(2, {"x": jnp.ones(8)}, {})
        assert free.is_set()
        _, state, _ = checkpoints.restore({"x": jnp.zeros(8)}, step=1)
        assert not checkpoints.busy()
        assert checkpoints.steps() == [1, 2]
    np.testing.assert_array_equal(state["x"], np.arange(8.0))


def test_saves_without_pause_are_all_there(tmp_path):
    assert saved(tmp_path, 1, 2, 3, 4, 5, keep=9).steps() == [1, 2, 3, 4, 5]


def test_the_newest_are_kept(tmp_path):
    checkpoints = saved(tmp_path, 2, 9, 10, 11)
    assert checkpoints.steps() == [10, 11]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "11"]


def test_saving_again_replaces_a_step(tmp_path):
    saved(tmp_path, 1, 2)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(2, make_state(5), {"position": "again"})
        step, state, meta = checkpoints.restore(make_state(0))
    assert (step, meta, checkpoints.steps()) == (2, {"position": "again"}, [1, 2])
    assert_same(state, make_state(5))


def test_later_steps_of_an_abandoned_run_go(tmp_path):
    saved(tmp_path, 10, 20, 30, keep=3)
    assert saved(tmp_path, 15, keep=3).steps() == [10, 15]


def test_restores_an_older_step_on_request(tmp_path):
    step, state, _ = saved(tmp_path, 4, 8).restore(make_state(0), step=4)
    assert step == 4
    assert_same(state, make_state(4))


def test_orbax_alone_reads_a_step(tmp_path):
    from orbax.checkpoint import v1 as ocp

    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(4, {"w": {"a": jnp.arange(3.0)}}, {})
    loaded = ocp.load(tmp_path / "4", {"['w']['a']": jnp.zeros(3)})
    np.testing.assert_array_equal(loaded["['w']['a']"], [0, 1, 2])


@pytest.mark.parametrize(
    "rubbish",
    [
        "10",
        "10.saving",
        "10.saving.orbax-checkpoint-tmp/state",
        "10.orbax-checkpoint-tmp/state",
        "notes",
        "010",
    ],
)
def test_an_unfinished_folder_is_no_step(tmp_path, rubbish):
    saved(tmp_path, 5)
    (tmp_path / rubbish).mkdir(parents=True)
    assert Checkpoints(tmp_path).steps() == [5]
    assert restored_step(tmp_path) == 5
    saved(tmp_path, 10)
    assert restored_step(tmp_path) == 10


def test_a_step_without_its_manifest_is_no_step(tmp_path):
    saved(tmp_path, 5, 10)
    (tmp_path / "10" / "manifest.json").unlink()
    assert Checkpoints(tmp_path).steps() == [5]
    saved(tmp_path, 10)
    assert restored_step(tmp_path) == 10


def test_a_replacement_cut_short_is_undone(tmp_path):
    saved(tmp_path, 5)
    (tmp_path / "5").rename(tmp_path / "5.replaced")
    (tmp_path / "5.saving").mkdir()
    assert restored_step(tmp_path) == 5
    saved(tmp_path, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "6"]


def flip(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def largest(folder):
    return max(files_of(folder / "state" / "d"), key=lambda p: p.stat().st_size)


DAMAGES = {
    "flipped": (lambda f: flip(largest(f), 50), r"state/d/\w+ is not what was written"),
    "truncated": (lambda f: truncate(largest(f)), r"state/d/\w+ has \d+ bytes instead of \d+"),
    "grown": (
        lambda f: largest(f).write_bytes(largest(f).read_bytes() + b"x"),
        r"state/d/\w+ has \d+ bytes instead",
    ),
    "missing": (lambda f: largest(f).unlink(), r"state/d/\w+ is missing"),
    "extra": (lambda f: (f / "state" / "more").touch(), r"state/more does not belong to it"),
    "metadata": (lambda f: flip(f / "state" / "_METADATA"), r"_METADATA is not what was written"),
    "manifest flipped": (
        lambda f: flip(f / "manifest.json", 14),
        r"manifest.json is not what was written",
    ),
    "manifest empty": (
        lambda f: (f / "manifest.json").write_text(""),
        r"manifest.json is not what was written",
    ),
    "manifest of another kind": (
        lambda f: (f / "manifest.json").write_text("[1]"),
        r"manifest.json is not what was written",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_step_before_restored(tmp_path, caplog, damage):
    saved(tmp_path, 5, 10)
    harm, message = DAMAGES[damage]
    harm(tmp_path / "10")
    with pytest.raises(ValueError, match=rf"step 10: .*{message}.*Steps there: 5, 10"):
        Checkpoints(tmp_path).restore(make_state(0), step=10)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert restored_step(tmp_path) == 5
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "step 10" in caplog.text
    saved(tmp_path, 10)
    assert restored_step(tmp_path) == 10


def test_every_flipped_byte_is_noticed(tmp_path):
    saved(tmp_path, 1)
    generator = random.Random(0)
    for path in files_of(tmp_path / "1"):
        content = path.read_bytes()
        for position in generator.sample(range(len(content)), min(3, len(content))):
            flip(path, position)
            with pytest.raises(ValueError, match=rf"step 1: {path.relative_to(tmp_path / '1')} is"):
                Checkpoints(tmp_path).restore(make_state(0))
            path.write_bytes(content)
    assert restored_step(tmp_path) == 1


def test_refuses_when_every_step_is_damaged(tmp_path):
    saved(tmp_path, 5, 10)
    for step in ("5", "10"):
        truncate(largest(tmp_path / step))
    with pytest.raises(ValueError, match=r"step 10: .*; step 5: .*Restore another step or delete"):
        Checkpoints(tmp_path).restore(make_state(0))


def test_refuses_a_step_that_is_not_there(tmp_path):
    empty = Checkpoints(tmp_path / "none")
    assert empty.steps() == []
    with pytest.raises(FileNotFoundError, match=r"No complete checkpoint in .*none; .*steps: none"):
        empty.restore(make_state(0))
    with pytest.raises(FileNotFoundError, match=r"checkpoint of step 6 in .*steps: 4, 5"):
        saved(tmp_path, 4, 5).restore(make_state(0), step=6)
    assert not (tmp_path / "none").exists()


def test_refuses_a_state_that_is_not_the_saved_one(tmp_path):
    saved(tmp_path, 5, 6)
    like = make_state(0)
    like["more"] = jnp.zeros(2)
    like["lora"]["a"] = jnp.zeros((8, 5))
    like["lora"]["b"] = jnp.zeros(6, jnp.float32)
    del like["key"]
    with pytest.raises(ValueError, match="Checkpoint 6 is not of this run") as error:
        Checkpoints(tmp_path).restore(like)
    for part in (
        "['more'] is not in the checkpoint",
        "['key'] is only in the checkpoint",
        "['lora']['a'] is float32[8,4] in the checkpoint and float32[8,5] here",
        "['lora']['b'] is bfloat16[6] in the checkpoint and float32[6] here",
        "Resume with the settings it was saved with",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("state", "meta", "message"),
    [
        ({"x": np.zeros(2), "y": 1}, {}, r"\['x'\] is ndarray, \['y'\] is int\. Convert them"),
        ({"x": jnp.zeros(2, jnp.uint4)}, {}, r"any type but uint2, uint4: \['x'\] is uint4"),
        ({"x": jnp.zeros((0, 2))}, {}, r"no elements"),
        ({"x": jnp.zeros(2)}, {"best": float("nan")}, r"plain JSON without NaN"),
        ({"x": jnp.zeros(2)}, {"best": jnp.zeros(())}, r"plain JSON .*not JSON serializable"),
    ],
)
def test_refuses_what_it_cannot_save_before_saving(tmp_path, state, meta, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path / "c").save(1, state, meta)
    assert not (tmp_path / "c").exists()


def test_refuses_numbers_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match=r"Step -1: a step is 0 or more"):
        Checkpoints(tmp_path).save(-1, make_state(0), {})
    with pytest.raises(ValueError, match=r"keep=0: at least 1"):
        Checkpoints(tmp_path, keep=0)


def run_child(code, *arguments, first="", **options):
    """Starts Python on code that may use everything of this file; `first` runs before all else."""
    here = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "support")]
    lines = ["import sys, jax", first, f"sys.path[:0] = {here}"]
    lines += ["from test_checkpoints import *", textwrap.dedent(code)]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_failure_in_the_background_is_one_error_and_the_next_save_works(tmp_path):
    """A limit on the size of files stands for a full disk."""
    child = run_child(
        """
        import resource, signal
        folder = Path(sys.argv[1])
        saved(folder, 1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        with closing(Checkpoints(folder)) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
            checkpoints.save(2, make_state(2), {})
            with pytest.raises(RuntimeError, match="could not be written .*steps: 1. Free space"):
                checkpoints.save(3, make_state(3), {})
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            checkpoints.save(2, make_state(2), {"position": 2})
        print(checkpoints.steps(), restored_step(folder))
        """,
        tmp_path,
    )
    out, err = child.communicate(timeout=120)
    assert out.strip() == "[1, 2] 2", err
    assert "absl" not in err  # orbax's own report of each of its threads


OPERATIONS = [
    (Path, "rename"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (os, "fsync"),
    (shutil, "rmtree"),
]


def kill_while_saving(folder, rounds, seed):
    """Kills a process that saves without pause, at a random instant; each round resumes."""
    delays = random.Random(seed)
    committed = 0
    for _ in range(rounds):
        child = run_child(
            """
            checkpoints = Checkpoints(Path(sys.argv[1]))
            step = (checkpoints.steps() or [0])[-1]
            while True:
                step += 1
                checkpoints.save(step, make_state(step), {"position": step})
                checkpoints.save(step, make_state(step), {"position": step})
                checkpoints.wait()
                print(step, flush=True)
            """,
            folder,
        )
        lines = [child.stdout.readline()]
        time.sleep(delays.uniform(0, 0.3))
        child.kill()
        rest, err = child.communicate()
        lines += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        assert lines[0], err
        last = int(lines[-1])
        step = restored_step(folder)
        assert last > committed
        assert step in (last, last + 1)
        committed = step


def test_a_kill_at_any_instant_loses_no_committed_step(tmp_path):
    kill_while_saving(tmp_path, 1, seed=time.time_ns())


@pytest.mark.slow
def test_many_kills_lose_no_committed_step(tmp_path):
    kill_while_saving(tmp_path, 20, seed=time.time_ns())


@pytest.mark.parametrize(
    ("step", "keep"),
    [(2, 1), *(pytest.param(*p, marks=pytest.mark.slow) for p in [(2, 2), (3, 1), (3, 2)])],
)
def test_a_commit_cut_short_at_any_file_operation_loses_no_step(tmp_path, keep, step, monkeypatch):
    """Each operation of a commit fails in turn, and everything after it never happens."""
    saved(tmp_path / "start", 1, 2, keep=keep)
    for last in range(1, 100):
        folder = tmp_path / str(last)
        shutil.copytree(tmp_path / "start", folder)
        count = itertools.count(1)

        def counted(function, count=count, last=last):
            def wrapper(*arguments, **options):
                if next(count) >= last:
                    raise OSError("the disk is gone")
                return function(*arguments, **options)

            return wrapper

        with monkeypatch.context() as patch:
            for owner, name in OPERATIONS:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                saved(folder, step, keep=keep)
                complete = True
            except (OSError, RuntimeError):
                complete = False
        assert restored_step(folder) in ({step} if complete else {2, step})
        saved(folder, 4, keep=keep)
        assert restored_step(folder) == 4
        assert len(list(folder.iterdir())) == keep
        if complete:
            assert last > 10
            return
    raise AssertionError("the commit never ended")


def global_state(step):
    """What `make_state` makes, without its key, as arrays over the devices of all processes."""
    mesh = make_mesh((4, 2))

    def spread(x):
        sharding = NamedSharding(mesh, P("data", "model") if x.shape == (8, 4) else P())
        return jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index])

    return jax.tree.map(spread, {k: v for k, v in make_state(step).items() if k != "key"})


def run_two_processes(code, folder):
    """Runs code in two processes of four devices each."""
    address = f"127.0.0.1:{free_port()}"
    first = "jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    children = [run_child(code, folder, address, i, first=first, env=environment) for i in range(2)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs


@pytest.mark.slow
def test_processes_save_together_and_restore_the_same_step(tmp_path):
    run_two_processes(
        """
        with closing(Checkpoints(Path(sys.argv[1]))) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, global_state(step), {"position": step})
        """,
        tmp_path,
    )
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 3]
    step, state, meta = checkpoints.restore(global_state(0))
    assert (step, meta) == (3, {"position": 3})
    assert_same(state, global_state(3))
    flip(largest(tmp_path / "3"), 50)
    run_two_processes(
        """
        step, state, meta = Checkpoints(Path(sys.argv[1])).restore(global_state(0))
        assert (step, meta) == (2, {"position": 2})
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(global_state(2)), strict=True):
            for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
                np.testing.assert_array_equal(x.data, y.data)
        with pytest.raises(FileNotFoundError, match="step 9 in|Process 0"):
            Checkpoints(Path(sys.argv[1])).restore(global_state(0), step=9)
        """,
        tmp_path,
    )
