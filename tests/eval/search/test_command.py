"""The command's best record is what every command takes, and is never worse than no edits."""

import itertools
import json

import pytest

from eval.search import command as search
from eval.sts import scores
from eval.sts.tasks import read_tasks
from prompteol_jax import Embedder
from prompteol_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("coarse")

DEEDS = "is sleeping", "runs outdoors", "plays the guitar"


@pytest.fixture
def folder(tmp_path):
    dev = tmp_path / "STS/STSBenchmark/sts-dev.csv"
    dev.parent.mkdir(parents=True)
    texts = [f"{who} {does}" for who in ("a man", "the dog", "two women") for does in DEEDS]
    pairs = [(n % 6, a, b) for n, (a, b) in enumerate(itertools.combinations(texts, 2))]
    dev.write_text("".join(f"g\tf\ty\t0\t{gold}\t{a}\t{b}\n" for gold, a, b in pairs))
    return tmp_path


def options(folder, **settings):
    return search.SweepOptions(
        **{"model": "tiny", "data": folder, "output": folder / "run", "over": "layer,exit"}
        | settings
    )


def test_the_best_record_scores_what_the_sweep_says(folder, capsys):
    asked = options(folder, method="tp/eol", json=folder / "s.json", report=folder / "s.html")
    result = search.run(asked)
    record = str(folder / "run" / "method.json")
    (task,) = read_tasks(folder, split="dev")
    alone = scores.development_score(
        Embedder.from_pretrained("tiny", dtype="float32", method=record), task.subsets[0]
    )
    assert result["best"]["score"] == pytest.approx(alone, abs=0.01)
    assert result["given"] is None  # the record is of a deeper model
    every = [result["none"], *result["cells"]]
    assert result["best"]["score"] == max(cell["score"] for cell in every)
    written = json.loads((folder / "s.json").read_text())
    assert written["cells"] == result["cells"] and written["axes"]["layer"] == [1, 2]
    page = (folder / "s.html").read_text()
    assert page.count("<svg") == 1 and "The winning record" in page
    assert "Without edits the prompts score" in " ".join(capsys.readouterr().out.split())


def test_a_second_run_encodes_nothing_and_another_model_is_refused(folder):
    first = search.run(options(folder, method="tp/eol"))
    again = search.run(options(folder, method="tp/eol"))
    assert again["encodings"] == 0 and again["cells"] == first["cells"]
    with pytest.raises(UserError, match="max_tokens was None and is now 100"):
        search.run(options(folder, method="tp/eol", max_tokens=100))


def test_what_cannot_be_swept_is_refused_before_the_model_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(search.SweepOptions, "load", None)
    with pytest.raises(UserError, match="has no subtract, so no scale"):
        search.run(options(folder, method="tp/eol", over="scale"))
