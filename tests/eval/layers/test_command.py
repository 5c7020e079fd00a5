"""The sweep of layers scores what each layer scores alone."""

import itertools
import json

import pytest

from eval.layers import command as layers
from eval.sts import scores
from eval.sts.tasks import read_tasks
from prompteol_jax import Embedder

DEEDS = "is sleeping", "runs outdoors", "plays the guitar"

pytestmark = pytest.mark.usefixtures("coarse")


@pytest.fixture
def folder(tmp_path):
    dev = tmp_path / "STS/STSBenchmark/sts-dev.csv"
    dev.parent.mkdir(parents=True)
    texts = [f"{who} {does}" for who in ("a man", "the dog", "two women") for does in DEEDS]
    # No pair twice and no sentence with itself: their cosines would tie but for rounding.
    pairs = [(n % 6, a, b) for n, (a, b) in enumerate(itertools.combinations(texts, 2))]
    dev.write_text("".join(f"g\tf\ty\t0\t{gold}\t{a}\t{b}\n" for gold, a, b in pairs))
    return tmp_path


@pytest.mark.slow
def test_every_layer_scores_what_it_scores_alone(folder, capsys):
    options = layers.LayersOptions(
        model="tiny", data=folder, json=folder / "layers.json", report=folder / "layers.html"
    )
    result = layers.run(options)
    tasks = read_tasks(folder, split="dev")
    for row in result["layers"]:
        for layer in (row["layer"], row["from_end"]):
            embedder = Embedder.from_pretrained("tiny", dtype="float32", layer=layer)
            alone = scores.evaluate_sts(embedder, tasks)["scores"]
            assert row["scores"] == pytest.approx(alone, abs=0.01)
    assert [row["layer"] for row in result["layers"]] == [1, 2]
    assert result["best"]["average"] == max(row["average"] for row in result["layers"])
    assert json.loads((folder / "layers.json").read_text())["layers"] == result["layers"]
    page = (folder / "layers.html").read_text()
    assert page.count("<svg") == 1 and "STSBenchmark-dev" in page
    assert "from the end" in capsys.readouterr().out


@pytest.mark.slow
def test_the_last_layer_of_the_trained_checkpoint_scores_what_eval_sts_gives(data):
    model = str(data / "weights" / "tinystories-656k")
    result = layers.run(layers.LayersOptions(model=model, data=data / "senteval"))
    assert result["layers"][-1]["average"] == pytest.approx(38.07, abs=0.02)


def test_what_chooses_a_layer_is_refused_before_the_model_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(layers.LayersOptions, "load", None)
    options = layers.LayersOptions(model="tiny", data=folder, layer=1, pooling="mean")
    with pytest.raises(ValueError, match=r"leave --layer out; --pooling mean: layers are read at"):
        layers.run(options)
