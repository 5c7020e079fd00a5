"""Transfer scores are those of SentEval's procedure in torch; the command from options to JSON."""

import json

import numpy as np
import pytest

from eval.shared import results
from eval.transfer import command as transfer
from eval.transfer import scores as transfer_scores
from eval.transfer.probe import Split
from eval.transfer.probe_step import Protocol
from eval.transfer.scores import Labeled, probe_task
from eval.transfer.tasks import Examples, Transfer

QUICK = Protocol(
    folds=3, batch=16, tenacity=1, epoch_size=2, max_epoch=8, decays=(1e-5, 1e-3, 1e-1)
)
SEED = 9


def noisy(rows, classes, seed):
    state = np.random.RandomState(seed)
    x_MD = state.randn(rows, 8).astype(np.float32)
    y_M = np.argmax(x_MD[:, :classes] + 2 * state.randn(rows, classes), axis=1)
    return Labeled(x_MD, y_M)


def folds(y_M, seed):
    """The splits of scikit-learn, which the original uses."""
    selection = pytest.importorskip("sklearn.model_selection")
    splitter = selection.StratifiedKFold(QUICK.folds, shuffle=True, random_state=seed)
    return splitter.split(np.zeros(len(y_M)), y_M)


def accuracy(torch_probe, data, train, test, decay, classes):
    """The accuracy on `test` of a torch probe that stops early by it, or by held-out rows."""
    best, _ = torch_probe.fit(data.x_MD, data.y_M, Split(train, test), decay, classes, QUICK, SEED)
    return best / len(test)


def final(torch_probe, data, rows, decay, classes):
    """A torch probe of all rows but the twentieth that it stops early by."""
    order = np.random.RandomState(SEED).permutation(len(rows))
    count = int(0.05 * len(rows))
    split = Split(rows[order[count:]], rows[order[:count]], len(rows))
    return torch_probe.fit(data.x_MD, data.y_M, split, decay, classes, QUICK, SEED)[1]


def chosen(accuracies):
    """The decay of the best rounded mean, and that mean."""
    means = [round(100 * np.mean(values), 2) for values in accuracies]
    return QUICK.decays[int(np.argmax(means))], max(means)


@pytest.mark.slow
def test_without_a_test_set_folds_within_folds_choose_and_folds_test(torch_probe):
    data = noisy(150, 2, 0)
    predicted, decays, development, tested = np.empty(150, int), [], [], []
    for train, test in folds(data.y_M, 1111):
        inner = [(train[a], train[b]) for a, b in folds(data.y_M[train], 1111)]
        decay, mean = chosen(
            [
                [accuracy(torch_probe, data, a, b, decay, 2) for a, b in inner]
                for decay in QUICK.decays
            ]
        )
        predicted[test] = torch_probe.predict(
            final(torch_probe, data, train, decay, 2), data.x_MD[test]
        )
        tested.append(round(100 * np.mean(predicted[test] == data.y_M[test]), 2))
        decays.append(decay)
        development.append(mean)
    got = probe_task(2, [data], QUICK, SEED)
    assert (got.decays, got.folds) == (decays, tested)
    assert got.development == round(np.mean(development), 2)
    assert got.test == round(np.mean(tested), 2)
    np.testing.assert_array_equal(got.predicted_M, predicted)


@pytest.mark.slow
def test_with_a_test_set_folds_of_the_training_set_choose(torch_probe):
    data, test = noisy(150, 3, 1), noisy(60, 3, 2)
    splits = list(folds(data.y_M, SEED))
    decay, mean = chosen(
        [[accuracy(torch_probe, data, a, b, decay, 3) for a, b in splits] for decay in QUICK.decays]
    )
    predicted = torch_probe.predict(final(torch_probe, data, np.arange(150), decay, 3), test.x_MD)
    got = probe_task(3, [data, test], QUICK, SEED)
    assert (got.decays, got.development) == ([decay], mean)
    assert got.test == round(100 * np.mean(predicted == test.y_M), 2)
    np.testing.assert_array_equal(got.predicted_M, predicted)


def test_with_three_sets_the_development_set_chooses(torch_probe):
    train, development, test = noisy(130, 2, 3), noisy(40, 2, 4), noisy(50, 2, 5)
    x_MD = np.concatenate([train.x_MD, development.x_MD])
    data = Labeled(x_MD, np.concatenate([train.y_M, development.y_M]))
    rows = np.arange(170)
    runs = [
        torch_probe.fit(data.x_MD, data.y_M, Split(rows[:130], rows[130:]), d, 2, QUICK, SEED)
        for d in QUICK.decays
    ]
    decay, mean = chosen([[right / 40] for right, _ in runs])
    predicted = torch_probe.predict(runs[QUICK.decays.index(decay)][1], test.x_MD)
    got = probe_task(2, [train, development, test], QUICK, SEED)
    assert (got.decays, got.development) == ([decay], mean)
    np.testing.assert_array_equal(got.predicted_M, predicted)


def test_a_pair_is_its_difference_and_its_product(bag_of_words):
    part = Examples((("a cat", "no"), ("a dog", "No")), np.array([1, 0]))
    (got,) = transfer_scores.features(
        bag_of_words, Transfer("made", ("no", "yes"), part), clean=False
    )
    u, v = (bag_of_words.encode(column) for column in part.columns)
    np.testing.assert_array_equal(got.x_MD, np.c_[abs(u - v), u * v])


@pytest.fixture
def folder(tmp_path):
    """A SentEval folder of a small CR and a small MRPC."""
    root = tmp_path / "downstream"
    state = np.random.RandomState(0)
    words = np.array("cat dog sun sea red old new big".split())

    def sentence(label):
        return " ".join(state.choice(words[4 * label * state.randint(2) :], 4))

    for name, label in (("custrev.pos", 1), ("custrev.neg", 0)):
        file = root / "CR" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{sentence(label)}\n" for _ in range(40)))
    for part in ("train", "test"):
        rows = [f"{n % 2}\t1\t2\t{sentence(n % 2)}\t{sentence(n % 2)}\n" for n in range(40)]
        file = root / "MRPC" / f"msr_paraphrase_{part}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("header\n" + "".join(rows))
    return root


@pytest.fixture
def bag_options(bag_of_words):
    """Makes options whose model is a bag of words."""

    class BagOptions(transfer.TransferOptions):
        def load(self, default_dtype):
            assert default_dtype == "float32"
            return bag_of_words

    return BagOptions


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_the_contract(folder, tmp_path, capsys, bag_options):
    file = tmp_path / "out" / "transfer.json"
    options = bag_options(model="bag", data=folder, tasks=("CR", "MRPC"), fast=True, json=file)
    returned = transfer.run(options)
    result = results.read(file)
    assert (
        result["scores"]
        == returned["scores"]
        == {name: detail["test"] for name, detail in result["detail"].items()}
    )
    assert result["average"] == round(sum(result["scores"].values()) / 2, 2)
    assert (result["model"], result["template"], result["dtype"]) == (
        "bag[of]words",
        "eol",
        "float32",
    )
    assert result["protocol"]["seed"] == 1111
    assert (result["protocol"]["optimizer"], result["protocol"]["batch"]) == ("rmsprop", 32)
    assert len(result["detail"]["CR"]["decays"]) == len(result["detail"]["CR"]["folds"]) == 5
    assert 0 <= result["detail"]["MRPC"]["f1"] <= 100
    for name, count in (("CR", 80), ("MRPC", 40)):
        gold, predicted = (result["examples"][name][key] for key in ("gold", "predicted"))
        assert len(gold) == len(predicted) == count
        np.testing.assert_array_equal(gold, returned["examples"][name]["gold"])
        assert 100 * np.mean(gold == predicted) == pytest.approx(result["scores"][name], abs=0.01)
    assert json.loads(file.read_text())["options"]["fast"] is True
    shown = capsys.readouterr().out
    assert "bag[of]words, template eol, float32, fast protocol" in shown
    for name, score in (*result["scores"].items(), ("average", result["average"])):
        (row,) = [line for line in shown.splitlines() if f" {name} " in line]
        assert f"{score:.2f}" in row


class Unloadable(transfer.TransferOptions):
    """Options whose model must not be reached."""

    def load(self, default_dtype):
        raise AssertionError("loaded before the data was checked")


def test_data_seed_and_outputs_are_checked_before_the_model_is_loaded(folder, tmp_path):
    for error, message, options in (
        (FileNotFoundError, "lacks 3 of the 5 files", {"tasks": ("CR", "SST2")}),
        (ValueError, r"no transfer task 'STS12' \(nearest: SST2\)", {"tasks": ("STS12",)}),
        (ValueError, "--seed -1 must be at least 0 and below 4294967296", {"seed": -1}),
        (IsADirectoryError, "found a folder", {"json": tmp_path}),
    ):
        with pytest.raises(error, match=message):
            transfer.run(Unloadable(model="bag", data=folder, **options))


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        transfer.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--data", "--tasks", "--fast", "--seed", "--raw", "--json", "--model"):
        assert flag in shown
