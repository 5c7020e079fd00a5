"""The command from options to table, JSON and page, with a small encoder in the model's place."""

import json

import numpy as np
import oracle
import pytest
from scipy import stats

from eval.shared import results
from eval.sts import command as sts
from eval.sts.tasks import read_tasks


@pytest.fixture
def bag_options(bag_of_words):
    """Makes options whose model is a bag of words."""

    class BagOptions(sts.StsOptions):
        def load(self, default_dtype):
            assert default_dtype == "float32"
            return bag_of_words

    return BagOptions


class Unloadable(sts.StsOptions):
    """Options whose model must not be reached."""

    def load(self, default_dtype):
        raise AssertionError("loaded before the data was checked")


def torch_scores(folder, tasks):
    """The released procedure in transformers: left-padded batches of 16, all subsets joined."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token_id, tokenizer.padding_side = 0, "left"
    body = oracle.load(folder).model

    def vectors(texts):
        prompts, found = [oracle.EOL.format(oracle.clean(text)) for text in texts], []
        for start in range(0, len(prompts), 16):
            batch = tokenizer(prompts[start : start + 16], return_tensors="pt", padding=True)
            batch.pop("token_type_ids", None)
            with torch.no_grad():
                found.append(body(**batch).last_hidden_state[:, -1])
        return torch.cat(found)

    scores = {}
    for task in tasks:
        sides = [(vectors(pairs.texts_a), vectors(pairs.texts_b)) for pairs in task.subsets]
        cosines = np.concatenate([torch.cosine_similarity(*two).numpy() for two in sides])
        gold = np.concatenate([pairs.gold for pairs in task.subsets])
        scores[task.name] = 100 * stats.spearmanr(gold, cosines).statistic
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("split", ["dev", "test"])
def test_trained_checkpoint_scores_what_the_original_procedure_does_in_torch(split, data):
    folder = data / "weights" / "tinystories-656k"
    result = sts.run(sts.StsOptions(model=str(folder), data=data / "senteval", split=split))
    theirs = torch_scores(folder, read_tasks(data / "senteval", split=split))
    assert result["scores"] == pytest.approx(theirs, abs=0.02)
    assert len(theirs) == {"dev": 1, "test": 7}[split]
    assert (result["template"], result["dtype"]) == ("eol", "float32")


def test_scores_the_seven_tasks_of_the_real_release(data, tmp_path, capsys, bag_options):
    json_file, page = tmp_path / "out" / "sts.json", tmp_path / "out" / "sts.html"
    returned = sts.run(
        bag_options(model="bag", data=data / "senteval", json=json_file, report=page)
    )
    result = json.loads(json_file.read_text())
    assert list(result["scores"]) == [f"STS{year}" for year in range(12, 17)] + [
        "STSBenchmark",
        "SICKRelatedness",
    ]
    assert result["average"] == round(sum(result["scores"].values()) / 7, 2)
    assert result["scores"] == returned["scores"]
    assert (result["model"], result["template"], result["dtype"]) == (
        "bag[of]words",
        "eol",
        "float32",
    )
    assert result["detail"]["STS13"]["subsets"]["FNWN"]["pairs"] == 189
    assert result["pairs"] == 18850
    assert result["clean"] is True
    assert result["provenance"]["model"]["name"] == "bag[of]words"
    for name, part in results.read(json_file)["examples"].items():
        assert len(part["gold"]) == len(part["cosine"]) == result["detail"][name]["pairs"]
        again = 100 * stats.spearmanr(part["gold"], part["cosine"]).statistic
        assert again == pytest.approx(result["detail"][name]["spearman"]["all"], abs=1e-9)
    shown = capsys.readouterr().out
    assert "bag[of]words, template eol, float32" in shown
    for name, score in result["scores"].items():
        (row,) = [line for line in shown.splitlines() if name in line]
        assert f"{score:.2f}" in row
    assert f"{result['average']:.2f}" in shown
    text = page.read_text()
    assert text.count("<svg") == 7 + 2  # a scatter a task, sizes, the histogram
    for name, (low, high) in result["intervals"].items():
        score = result["scores"].get(name, result["average"])
        assert low < score < high < low + 10
    assert result["data"]["incomplete"] == {} and result["data"]["split"] == "test"
    assert (result["command"], result["layer"], result["pooling"]) == ("eval.sts", None, "last")
    for shown in ("none found", "random pairs", "anisotropy", "Pairs most out of rank", " → "):
        assert shown in text
    assert "https:" not in text and "http:" not in text
    assert len(text) < 1_500_000


def test_development_split_of_raw_sentences(data, capsys, bag_options):
    options = bag_options(model="bag", data=data / "senteval", split="dev", raw=True)
    raw = sts.run(options)
    cleaned = sts.run(bag_options(model="bag", data=data / "senteval", split="dev"))
    assert list(raw["scores"]) == ["STSBenchmark-dev"]
    assert raw["average"] == raw["scores"]["STSBenchmark-dev"] != cleaned["average"]
    assert raw["clean"] is False
    assert "float32, raw sentences" in capsys.readouterr().out


def test_data_and_outputs_are_checked_before_the_model_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither STS/ nor SICK/"):
        sts.run(Unloadable(model="bag", data=tmp_path))
    with pytest.raises(ValueError, match="no dev split of 'STS12'"):
        sts.run(Unloadable(model="bag", data=tmp_path, tasks=("STS12",), split="dev"))
    with pytest.raises(IsADirectoryError, match="expected a file to write, found a folder: "):
        sts.run(Unloadable(model="bag", data=tmp_path, json=tmp_path, report=tmp_path))


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        sts.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--data", "--split", "--tasks", "--raw", "--json", "--report", "--model"):
        assert flag in shown
