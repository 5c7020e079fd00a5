"""Laws of a run's folder: no run writes over another, none is resumed as something else."""

import dataclasses
import json

import pytest

from train.config import TrainConfig
from train.run.folder import RunFolder


def begun(path, **flags):
    config = TrainConfig(output=path, **flags)
    folder = RunFolder.find(config)
    folder.begin(config)
    return folder


def test_a_new_run_writes_its_flags(tmp_path):
    folder = begun(tmp_path / "deep" / "run", lr=1e-4)
    assert folder.path == tmp_path / "deep" / "run"
    fields = json.loads((folder.path / "config.json").read_text())
    assert fields["lr"] == 1e-4
    assert fields["output"] == str(folder.path)
    assert set(fields) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_looking_for_a_folder_writes_nothing(tmp_path):
    RunFolder.find(TrainConfig(output=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_folder_gets_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-synthetic", "tiny-synthetic-2", "tiny-synthetic-3"):
        config = TrainConfig()
        folder = RunFolder.find(config)
        assert str(folder.path) == f"runs/{name}"
        folder.begin(config)
    config = TrainConfig(model="facebook/opt-125m", data="some/nli.csv")
    assert str(RunFolder.find(config).path) == "runs/opt-125m-nli"


def test_refuses_to_write_over_a_run(tmp_path):
    begun(tmp_path)
    with pytest.raises(FileExistsError, match="holds a run already: continue it with --resume, or"):
        RunFolder.find(TrainConfig(output=tmp_path))


@pytest.mark.parametrize("there", [None, "run", "run/adapter"])
def test_resuming_what_never_began_is_a_new_run(tmp_path, there):
    if there:
        (tmp_path / there).mkdir(parents=True)
    config = TrainConfig(output=tmp_path / "run", resume=True)
    RunFolder.find(config).begin(config)
    assert (tmp_path / "run" / "config.json").exists()


def test_refuses_to_resume_a_run_without_its_flags(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    message = "holds metrics.jsonl and checkpoints but no config.json: .*choose another --output"
    with pytest.raises(FileNotFoundError, match=message):
        RunFolder.find(TrainConfig(output=tmp_path, resume=True))


def test_refuses_to_resume_with_other_flags_naming_all_of_them(tmp_path):
    begun(tmp_path)
    other = TrainConfig(output=tmp_path, resume=True, lr=1e-3, warmup_steps=7)
    message = (
        r"cannot be resumed with other flags: --lr was 0.0005, is 0.001; "
        r"--warmup-steps was None, is 7$"
    )
    with pytest.raises(ValueError, match=message):
        RunFolder.find(other)


def test_a_run_moves_to_another_mesh(tmp_path):
    begun(tmp_path, mesh="4x2")
    config = TrainConfig(output=tmp_path, resume=True, mesh="2x1", keep=5, json=tmp_path / "j")
    folder = RunFolder.find(config)
    folder.begin(config)
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
