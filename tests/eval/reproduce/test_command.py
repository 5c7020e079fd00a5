"""Every cell stands beside its published figure, rows are kept, and what is missing is said."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eval.reproduce import command as reproduce
from eval.reproduce import published
from eval.reproduce.command import ReproduceOptions
from eval.shared import datasets
from eval.sts import command as sts
from eval.sts import report as sts_report
from eval.transfer import command as transfer
from prompteol_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bag_rows(monkeypatch, bag_of_words):
    """Every model is a bag of words, but those whose name says that they are out of reach."""
    loaded = []

    def load(self, default_dtype):
        if "absent" in self.model or "13b" in self.model:
            raise ConnectionError(f"{self.model} could not be fetched")
        loaded.append(self.model)
        return bag_of_words

    monkeypatch.setattr(sts.StsOptions, "load", load)
    monkeypatch.setattr(transfer.TransferOptions, "load", load)
    monkeypatch.setattr(sts_report, "write_report", lambda *_: None)
    return loaded


@pytest.fixture(autouse=True)
def small_data_is_the_published_data(small_is_whole):
    """Most of these tests are not about the size of the data."""


def options(data, output, table="sts-icl", **settings):
    return ReproduceOptions(table=table, data=data, output=output / "out", **settings)


def test_cells_stand_beside_published_figures(bag_rows, small_downstream, tmp_path, capsys):
    file = tmp_path / "cells.json"
    result = reproduce.run(
        options(small_downstream, tmp_path, models=("opt-125m", "opt-13b"), json=file)
    )
    assert json.loads(file.read_text())["rows"] == json.loads(json.dumps(result["rows"]))
    first, second = result["rows"]
    assert bag_rows == ["facebook/opt-125m"]
    assert first["template"] == "eol-icl-125m"
    assert [cell["task"] for cell in first["cells"]] == [*published.STS, "average"]
    for cell in first["cells"]:
        assert cell["difference"] == round(cell["ours"] - cell["published"], 2)
        assert cell["within"] == (abs(cell["difference"]) <= 0.3)
    assert second["reason"] == "facebook/opt-13b could not be fetched"
    shown = capsys.readouterr().out
    assert "62.22" in shown
    assert "opt-13b is not available: facebook/opt-13b could not be fetched" in shown
    assert "of 8 compared cells within 0.3 points; 1 of 2 rows not available" in shown
    page = (tmp_path / "out" / "sts-icl.html").read_text()
    assert page.count("<svg") == 2 and "README of kongds/scaling_sentemb" in page


def test_transfer_rows_are_run_by_the_probes_and_kept(bag_rows, tmp_path, monkeypatch):
    scored = {"scores": dict.fromkeys(published.TRANSFER, 90.0), "average": 90.0}
    part = {"examples": 1, "test": 90.0, "development": 90.0, "decays": [1e-5]}
    part |= {"class_names": ["no", "yes"]}
    it = {"gold": np.array([1, 0]), "predicted": np.array([1, 1])}
    scored |= {"detail": dict.fromkeys(published.TRANSFER, part)}
    scored |= {"examples": dict.fromkeys(published.TRANSFER, it)}
    monkeypatch.setattr(transfer.transfer_scores, "evaluate_transfer", lambda *_, **__: {**scored})
    monkeypatch.setattr(transfer, "read_transfer", lambda *_, **__: ())
    monkeypatch.setattr(reproduce.transfer_tasks, "read_transfer", lambda _: ())
    asked = options(tmp_path, tmp_path, "transfer", models=("Llama-2-7b-hf", "opt-13b"))
    done, missing = reproduce.run(asked)["rows"]
    assert [cell["task"] for cell in done["cells"]] == [*published.TRANSFER, "average"]
    assert done["cells"][0]["difference"] == round(90 - 90.63, 2)
    assert missing["reason"] == "facebook/opt-13b could not be fetched"
    assert reproduce.run(asked)["rows"][0] == done
    assert len(bag_rows) == 1
    strict = options(tmp_path, tmp_path, "transfer", strict_original=True)
    with pytest.raises(ValueError, match="transfer tasks have none: leave it out"):
        reproduce.run(strict)


def test_a_cell_within_the_band_is_told_from_one_outside():
    row = published.find("sts-icl", "opt-125m")[0]
    scores = dict(row.scores) | {"STS12": 62.52, "STS13": 73.41}
    result = {"scores": scores, "average": 67.46}
    result["template"] = "eol-icl-125m"
    within = [cell["within"] for cell in reproduce.Outcome(row, result).cells("sts-icl")]
    assert within == [True, False] + 6 * [True]


def test_what_was_not_published_is_none_found_and_derived_averages_are_marked(
    bag_rows, small_downstream, tmp_path, capsys
):
    asked = options(
        small_downstream, tmp_path, "sts-zero-shot", models=("opt-350m", "llama-7b", "mine/x")
    )
    rows = reproduce.run(asked)["rows"]
    assert [row["model"] for row in rows] == ["facebook/opt-350m", "huggyllama/llama-7b", "mine/x"]
    shown = capsys.readouterr().out
    assert "65.03 (derived)" in shown
    assert shown.count("none found") == 7 + 8 + 8
    assert "0 of 1 compared cells" in shown


def test_rows_are_kept_until_options_or_files_change(bag_rows, small_downstream, tmp_path):
    asked = options(small_downstream, tmp_path, models=("opt-125m",))
    first = reproduce.run(asked)
    assert reproduce.run(asked)["rows"] == first["rows"]
    assert len(bag_rows) == 1
    (file,) = (tmp_path / "out" / "sts-icl").glob("*.json")
    file.write_text(file.read_text()[:100])
    assert reproduce.run(asked)["rows"] == first["rows"]
    assert len(bag_rows) == 2
    changed = json.loads(file.read_text())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"other")
    model = {"folder": str(tmp_path), "files": {weights.name: "0" * 64}, "parameters": 1}
    changed["provenance"] = {"model": model, "adapter": None}
    file.write_text(json.dumps(changed))
    reproduce.run(asked)
    assert len(bag_rows) == 3


def test_a_row_of_other_data_is_run_again(bag_rows, small_downstream, tmp_path):
    copied = tmp_path / "downstream"
    shutil.copytree(small_downstream, copied)
    asked = options(copied, tmp_path, models=("opt-125m",))
    first = reproduce.run(asked)
    file = copied / "STS" / "STSBenchmark" / "sts-test.csv"
    mirrored = [line.split("\t") for line in file.read_text().splitlines()]
    for fields in mirrored:
        fields[4] = str(5 - float(fields[4]))
    file.write_text("".join("\t".join(fields) + "\n" for fields in mirrored))
    second = reproduce.run(asked)
    ours = [
        next(c["ours"] for c in result["rows"][0]["cells"] if c["task"] == "STSBenchmark")
        for result in (first, second)
    ]
    assert ours[1] == -ours[0] != 0
    assert len(bag_rows) == 2


def test_cells_of_incomplete_data_are_not_compared(
    bag_rows, small_downstream, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(datasets, "SIZES", datasets.SIZES | {"STS13": (1500,)})
    result = reproduce.run(options(small_downstream, tmp_path, models=("opt-125m",)))
    (row,) = result["rows"]
    why = {cell["task"]: cell["why_not"] for cell in row["cells"] if cell["why_not"]}
    assert why == {
        "STS13": "15 rows, published 1,500",
        "average": "not of the published data",
    }
    assert result["data"]["incomplete"] == {"STS13": "15 rows, published 1,500"}
    assert "STS13 is not compared: 15 rows, published 1,500" in capsys.readouterr().out


def test_a_table_of_which_no_row_could_be_run_is_an_error(bag_rows, small_downstream, tmp_path):
    asked = options(small_downstream, tmp_path, models=("opt-13b",))
    with pytest.raises(UserError, match=r"no row could be run:\n  opt-13b: facebook/opt-13b could"):
        reproduce.run(asked)


def test_strict_original_is_float32_or_float16_as_the_script_ran(small_downstream, tmp_path):
    for table, models in (("sts-icl", ("opt-30b", "opt-66b")), ("quantization", ("opt-6.7b",))):
        asked = options(small_downstream, tmp_path, table, models=models, strict_original=True)
        run = [reproduce.row_options(asked, row) for row in reproduce.choose(asked)]
        assert [one.strict_original for one in run] == ["float32", "float16"]
        assert [one.quantize for one in run] == [None, "nf4" if table == "quantization" else None]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ("sts-icl", {"models": ("mine",)}, "no demonstration was published for mine: give --temp"),
        ("sts-finetuned", {"models": ("mine",)}, "no adapter was published for mine: give --adap"),
        ("sts-icl", {"models": ("opt-125m",), "template": "eol"}, "leave --template out"),
    ],
)
def test_a_row_without_what_its_table_is_about_is_refused(table, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reproduce.run(options(tmp_path, tmp_path, table, **settings))


def test_data_is_checked_first(bag_rows, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither STS/ nor SICK/"):
        reproduce.run(options(tmp_path, tmp_path))
    assert bag_rows == []


def test_every_row_has_a_file_of_its_own(tmp_path):
    for table in published.TABLES:
        asked = options(tmp_path, tmp_path, table)
        files = [reproduce.row_options(asked, row).json for row in reproduce.choose(asked)]
        assert len(set(files)) == len(files) == len(published.TABLES[table])


@pytest.mark.slow
def test_a_model_of_a_hub_is_run_and_one_that_it_lacks_is_not_available(
    data, small_downstream, tmp_path
):
    def module(name, path):
        spec = importlib.util.spec_from_file_location(name, path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    hub = module("stand_in_hub", ROOT / "tests" / "library" / "pretrained" / "test_hub.py")
    weights = data / "weights" / "tinystories-656k"
    files = {path.name: path.read_bytes() for path in weights.iterdir() if path.is_file()}
    hub.FILES["facebook/opt-125m"] = files
    with hub.Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        environment = os.environ | {
            **{"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"},
            **{"COLUMNS": "200"},
        }
        command = [sys.executable, "-m", "eval.reproduce", "sts-zero-shot"]
        command += ["--models", "opt-125m", "opt-350m", "--data", str(small_downstream)]
        run = subprocess.run(
            [*command, "--output", str(tmp_path / "out")],
            **{"env": environment, "cwd": ROOT, "capture_output": True, "text": True},
            timeout=300,
        )
        server.shutdown()
        thread.join()
    assert run.returncode == 0, run.stderr
    assert "opt-125m is not available" not in run.stdout, run.stdout[-1000:]
    assert "67.00 (derived)" in run.stdout
    assert "opt-350m is not available: no folder facebook/opt-350m exists" in run.stdout
    (file,) = (tmp_path / "out" / "sts-zero-shot").glob("*.json")
    assert json.loads(file.read_text())["provenance"]["model"]["revision"] == hub.COMMIT
