"""A sound checkpoint passes every check, and each kind of damage fails the check made for it."""

import json
import shutil

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.cli import main as cli
from prompteol_jax.methods.pooling import Mean
from prompteol_jax.models import build
from prompteol_jax.verify import certificate as verify
from prompteol_jax.verify import torch_reference
from prompteol_jax.verify.sentences import SENTENCES


def verdicts(checks):
    return {check.name: check.verdict for check in checks}


@pytest.fixture
def sound(checkpoints, coarse):
    return Embedder.from_pretrained(str(checkpoints("opt-tiny")), dtype="float32")


def changed(embedder, change):
    """The same embedder with weights put through `change`, by path."""
    leaves = build.leaves(embedder.decoder)
    embedder.use(build.fill(embedder.decoder, {p: change(p, leaf) for p, leaf in leaves.items()}))
    return embedder


def test_the_sentences_are_64_and_differ():
    assert len(set(SENTENCES)) == len(SENTENCES) == 64


@pytest.mark.slow
def test_a_sound_checkpoint_passes(sound):
    heard = []
    checks = verify.verify(sound, heard.append)
    names = ("tokenizer", "finite", "distinct", "batch", "parity")
    assert verdicts(checks) == dict.fromkeys(names, "passed")
    assert heard == ["tokenizer", "vectors", "batch invariance", "parity with transformers"]
    numbers = checks[-1].numbers
    assert numbers["smallest_cosine"] == min(numbers["cosines"]) > 0.999999
    assert len(numbers["cosines"]) == 64
    assert numbers["largest_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"layer": 1}, {"pooling": "mean"}, {"adapter": True}])
def test_parity_is_that_of_the_settings(setting, checkpoints, coarse, tmp_path):
    import oracle

    folder = checkpoints("opt-tiny")
    if "adapter" in setting:
        targets = ["q_proj", "fc1"]
        adapter = oracle.write_adapter(folder, tmp_path / "adapter", r=2, target_modules=targets)
        setting = {"adapter": str(adapter)}
    embedder = Embedder.from_pretrained(str(folder), dtype="float32", **setting)
    z_BD = embedder.encode(SENTENCES)
    check = verify.check_parity(embedder, z_BD)
    assert check.verdict == "passed"
    plain = verify.check_parity(Embedder.from_pretrained(str(folder), dtype="float32"), z_BD)
    assert plain.verdict == "failed"


def test_a_pooling_that_the_reference_lacks_is_not_compared(sound):
    class First(Mean):
        name = "first"

        def span(self, ids_T, prompt):
            return 0, 1

    embedder = Embedder(sound.pretrained, "eol", pooling=First())
    check = verify.check_parity(embedder, np.ones((len(SENTENCES), 2), np.float32))
    assert check.verdict == "not checked"
    assert check.detail.endswith("the reference knows pooling last or mean, without edits")


@pytest.mark.slow
def test_a_quantized_base_is_told_from_the_whole_one(checkpoints, coarse):
    folder = str(checkpoints("opt-tiny"))
    embedder = Embedder.from_pretrained(folder, dtype="float32", quantize="int8")
    check = verify.check_parity(embedder, embedder.encode(SENTENCES))
    assert check.verdict == "not checked"
    assert check.detail.startswith("int8 against transformers' unquantized base: 64 vectors")
    assert 0.9 < check.numbers["smallest_cosine"] < 0.999999


@pytest.mark.slow
def test_a_changed_weight_fails_parity_alone(sound):
    embedder = changed(sound, lambda path, leaf: leaf * 1.5 if path == "last.mlp.up.w" else leaf)
    checks = verify.verify(embedder)
    found = verdicts(checks)
    assert found.pop("parity") == "failed"
    assert set(found.values()) == {"passed"}
    assert checks[-1].detail.endswith("the first layer that differs is 2 of 2")
    first, second = checks[-1].numbers["smallest_cosine_by_layer"]
    assert first > 0.999999 > second


def test_collapsed_vectors_are_found(sound):
    lost = changed(sound, lambda path, leaf: leaf * 0 if path.startswith("embedding") else leaf)
    check = verify.check_distinct(lost.encode(SENTENCES))
    assert check.verdict == "failed"
    assert check.numbers["same"] == 64 * 63 / 2
    rng = np.random.default_rng(0)
    cone = (rng.normal(0, 0.05, (64, 32)) + 1).astype(np.float32)
    check = verify.check_distinct(cone)
    assert (check.verdict, check.numbers["same"]) == ("failed", 0)
    assert check.numbers["mean_cosine"] > 0.99
    assert verify.check_distinct(np.zeros((64, 32), np.float32)).verdict == "failed"
    round_ = rng.normal(size=(64, 32)).astype(np.float32)
    assert verify.check_distinct(round_).verdict == "passed"


def test_numbers_that_are_not_finite_end_the_checks(sound):
    def spoil(path, leaf):
        return leaf.at[0].set(np.nan) if path.startswith("final_norm") else leaf

    found = verify.verify(changed(sound, spoil))
    assert verdicts(found) == {
        **{"tokenizer": "passed", "finite": "failed"},
        **dict.fromkeys(("distinct", "batch", "parity"), "not checked"),
    }


def test_vectors_that_depend_on_their_batch_are_found(sound, monkeypatch):
    z_BD = sound.encode(SENTENCES)

    def encode(texts, progress=None):
        rows = z_BD[[SENTENCES.index(text) for text in texts]]
        return rows + np.float32(1e-6) * (len(texts) == 1) * (rows[:, :1] > 0)

    monkeypatch.setattr(sound, "encode", encode)
    check = verify.check_batches(sound, z_BD)
    assert check.verdict == "failed"
    assert check.numbers["changed"] == (z_BD[:, 0] > 0).sum() > 0


def test_wrong_ids_are_found(sound, monkeypatch):
    right = verify.golden_ids(sound.prompt.tokenizer)
    assert {g.vocabulary for g in right} == {"OPT"}
    wrong = [right[0]._replace(found=[2, 3])]
    monkeypatch.setattr(verify, "golden_ids", lambda _: wrong)
    check = verify.check_tokenizer(sound)
    assert check.verdict == "failed"
    assert "gives [2, 3], expected [2, 31414" in check.detail


def test_without_torch_parity_is_said_not_to_be_checked(sound, monkeypatch):
    monkeypatch.setattr(torch_reference, "find_spec", lambda _: None)
    z_BD = np.zeros((64, 64), np.float32)
    check = verify.check_parity(sound, z_BD)
    assert (check.verdict, check.detail) == ("not checked", "torch is not installed")
    assert torch_reference.missing(sound.pretrained.folder) == ["torch", "peft"]


def test_the_command_writes_a_certificate_and_its_status(checkpoints, coarse, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("opt-tiny"), folder)
    file = tmp_path / "deep" / "certificate.json"
    arguments = ["verify", "--model", str(folder), "--json", str(file)]
    cli.main(arguments)
    shown = capsys.readouterr()
    assert "verdict: passed" in shown.out
    assert "checking parity with transformers" in shown.err
    certificate = json.loads(file.read_text())
    assert certificate["verdict"] == "passed"
    assert certificate["provenance"]["model"]["files"]["config.json"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50000}))
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 1
    assert json.loads(file.read_text())["verdict"] == "failed"
    assert "its largest id is 50264" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere/at all"], "neither an existing folder nor a hub name"),
        (["--model", "tiny", "--template", "eol2"], "unknown template 'eol2'"),
        (["--model", "tiny", "--mesh", "4"], "mesh"),
        (["--model", "tiny", "--json", "."], "expected a file to write, found a folder: ."),
    ],
)
def test_what_cannot_be_checked_is_an_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_sentence_beyond_the_positions_is_cut_as_encode_cuts(checkpoints, coarse):
    shortest = Embedder.from_pretrained(
        str(checkpoints("opt-tiny")), dtype="float32", max_tokens=24
    )
    z_BD = shortest.encode(SENTENCES)
    assert shortest.report.truncated
    assert verify.check_parity(shortest, z_BD).verdict == "passed"


def test_a_model_that_is_not_there_is_an_error_and_no_verdict(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--model", str(tmp_path / "none"), "--json", str(tmp_path / "c.json")])
    assert stopped.value.code == 2
    assert "is neither an existing folder nor a hub name" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
