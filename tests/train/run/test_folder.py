"""Laws of a run's folder: no run writes over another, none is resumed as something else."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import pytest

from prompteol_jax.errors import UserError
from train.config import TrainConfig
from train.run.folder import RunFolder

DATA = {"data": {"rows.csv": "0123"}}


@contextlib.contextmanager
def claimed(path, data=DATA, **flags):
    """A run that has begun, as long as it is held."""
    config = TrainConfig(output=path, **{"dtype": "float32", **flags})
    with RunFolder.claim(config, data) as folder:
        folder.begin()
        yield folder


def begun(path, data=DATA, **flags):
    with claimed(path, data, **flags) as folder:
        return folder


def test_a_new_run_writes_its_flags(tmp_path):
    folder = begun(tmp_path / "deep" / "run", lr=1e-4)
    assert folder.path == tmp_path / "deep" / "run"
    fields = json.loads((folder.path / "config.json").read_text())
    assert fields["lr"] == 1e-4
    assert fields["output"] == str(folder.path)
    assert set(fields) == {"work"} | {field.name for field in dataclasses.fields(TrainConfig)}
    assert fields["work"]["data"] == DATA["data"]
    assert fields["work"]["weights"] == "tiny"
    assert fields["work"]["prompt"] == 'This sentence : "{}" means in one word:"'


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path):
    with RunFolder.claim(TrainConfig(output=tmp_path / "run"), DATA):
        assert (tmp_path / "run").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with RunFolder.claim(TrainConfig(output=tmp_path / "mine"), DATA):
        pass
    assert [*tmp_path.iterdir()] == [tmp_path / "mine"]


def test_a_run_without_a_folder_gets_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as together:  # started together: none has written its flags yet
        names = [
            str(together.enter_context(RunFolder.claim(TrainConfig(), DATA)).path) for _ in range(3)
        ]
    assert names == [f"runs/tiny-synthetic{end}" for end in ("", "-2", "-3")]
    config = TrainConfig(data="some/nli.csv")
    with RunFolder.claim(config, DATA) as folder:
        assert str(folder.path) == "runs/tiny-nli"


def test_refuses_to_write_over_a_run(tmp_path):
    begun(tmp_path)
    with (
        pytest.raises(FileExistsError, match="holds a run already: continue it with --resume, or"),
        RunFolder.claim(TrainConfig(output=tmp_path), DATA),
    ):
        pass


_WRITER = """
import sys
from pathlib import Path
from prompteol_jax.errors import UserError
from train.config import TrainConfig
from train.run.folder import RunFolder

config = TrainConfig(output=Path(sys.argv[1]), dtype="float32")
with RunFolder.claim(config, {"data": {"rows.csv": "0123"}}) as folder:
    folder.begin()
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_writes_is_refused_by_its_name(tmp_path):
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "holding\n"
        message = rf"another run is writing to .*: a training run, process {other.pid} on "
        for resume in (True, False):
            with (
                pytest.raises(UserError, match=message),
                RunFolder.claim(TrainConfig(output=tmp_path, resume=resume), DATA),
            ):
                pass
        other.kill()
    # What a killed run held is free.
    with claimed(tmp_path, resume=True):
        pass


@pytest.mark.parametrize("there", [None, "run", "run/adapter"])
def test_resuming_what_never_began_is_a_new_run(tmp_path, there):
    if there:
        (tmp_path / there).mkdir(parents=True)
    begun(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").exists()


def test_refuses_to_resume_a_run_without_its_flags(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    message = "holds metrics.jsonl and checkpoints but no config.json, .*choose another --output"
    with pytest.raises(FileNotFoundError, match=message):
        begun(tmp_path, resume=True)


def test_refuses_to_resume_with_other_flags_naming_all_of_them(tmp_path):
    begun(tmp_path)
    message = (
        r"belongs to another run: --lr was 0.0005 and is now 0.001; "
        r"--warmup-steps was None and is now 7\. Resume it with the flags"
    )
    with pytest.raises(UserError, match=message):
        begun(tmp_path, resume=True, lr=1e-3, warmup_steps=7)


def test_refuses_to_resume_over_changed_files(tmp_path):
    """The same flags, and other rows, another adapter and another template behind them."""
    adapter, template = tmp_path / "adapter", tmp_path / "own.json"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    template.write_text('{"prefix": "One: ", "suffix": " is"}')
    flags = dict(adapter=str(adapter), template=str(template))
    begun(tmp_path / "run", **flags)
    begun(tmp_path / "run", resume=True, **flags)
    (adapter / "adapter_config.json").write_text('{"r": 1}')
    template.write_text('{"prefix": "Two: ", "suffix": " is"}')
    with pytest.raises(UserError) as error:
        begun(tmp_path / "run", {"data": {"rows.csv": "4567"}}, resume=True, **flags)
    for what in ("work.adapter.adapter_config.json", "work.prompt", "work.data.rows.csv"):
        assert f"{what} was " in str(error.value)
    assert str(error.value).count(" and is now ") == 3


def test_a_run_of_the_first_version_is_compared_by_its_flags(tmp_path):
    folder = begun(tmp_path)
    fields = json.loads((folder.path / "config.json").read_text())
    del fields["work"]
    (folder.path / "config.json").write_text(json.dumps(fields))
    begun(tmp_path, resume=True)


def test_a_run_moves_to_another_mesh(tmp_path):
    begun(tmp_path, mesh="4x2")
    begun(tmp_path, resume=True, mesh="2x1", keep=5, json=tmp_path / "j")
    assert json.loads((tmp_path / "config.json").read_text())["mesh"] == "2x1"


def test_forgets_what_lies_behind_the_step_that_is_resumed(tmp_path):
    folder = begun(tmp_path)
    for step in range(6):
        folder.append("metrics.jsonl", {"step": step, "loss": 0.5})
        folder.append("dev.jsonl", {"step": step, "dev": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a kill broke it off
    folder.forget(after=3)
    for name in ("metrics.jsonl", "dev.jsonl"):
        lines = (tmp_path / name).read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    folder.forget(after=-1)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_forgetting_needs_no_files(tmp_path):
    folder = begun(tmp_path)
    folder.forget(after=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "dev.jsonl"]
    assert (tmp_path / "dev.jsonl").read_text() == ""
