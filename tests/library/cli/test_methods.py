"""Laws of `prompteol methods`, `prompteol fit` and --method."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.cli.main import main
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.methods import library
from prompteol_jax.text.template import PROMPTEOL, TEMPLATES


@pytest.mark.unit
def test_methods_are_listed_with_their_records(tmp_path, capsys):
    main(["methods", "tp/cot", "--json", str(tmp_path / "m.json")])
    assert "2412.11556" in capsys.readouterr().out
    listed = json.loads((tmp_path / "m.json").read_text())["methods"]
    assert [row["name"] for row in listed] == [n for n in library.shipped() if "tp/cot" in n]
    assert all(row["cost"] > 0.5 and row["record"]["copy"] for row in listed)
    with pytest.raises(SystemExit):
        main(["methods", "none"])
    assert "no method begins with 'none'" in capsys.readouterr().err


@pytest.mark.unit
def test_the_record_decides_the_work_and_no_record_changes_nothing():
    plain = ModelOptions(model="tiny").work("float32")
    assert "method" not in plain and "any_method" not in plain
    work = ModelOptions(model="tiny", method="attention-sum").work("float32")
    assert work["method"]["collect"] == {}
    with pytest.raises(UserError, match="decides template"):
        ModelOptions(model="tiny", method="eol", template="cot").work("float32")


@pytest.mark.unit
def test_an_adapter_of_another_method_is_refused_unless_it_is_allowed(tmp_path):
    trained = library.plain_method(PROMPTEOL, "last", None)
    library.write_method(tmp_path / library.FILE, trained)
    library.check_trained_with(tmp_path, library.find_method("eol"))
    for other in (library.find_method("cot"), library.find_method("attention-sum")):
        with pytest.raises(UserError, match=r"was trained with the method eol.*--any-method"):
            library.check_trained_with(tmp_path, other)
    library.check_trained_with(tmp_path / "none", library.find_method("cot"))


def in_python(adapter, **how):
    Embedder.from_pretrained("tiny", adapter=adapter, dtype="float32", **how)


def by_flags(adapter, **how):
    ModelOptions(model="tiny", adapter=str(adapter), **how).load("float32")


@pytest.mark.parametrize("load", [in_python, by_flags], ids=lambda load: load.__name__)
@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ({"template": "cot"}, True),
        ({"method": "cot"}, True),
        ({"pooling": "mean"}, True),
        ({"method": "cot", "any_method": True}, False),
        ({}, False),
        ({"method": "eol"}, False),
    ],
    ids=str,
)
def test_both_faces_refuse_an_adapter_of_another_method(load, how, refused, tmp_path):
    library.write_method(tmp_path / library.FILE, library.plain_method(PROMPTEOL, "last", None))
    (tmp_path / "adapter_config.json").write_text("{}")
    message = "was trained with the method eol" if refused else "base_model_name_or_path|peft_type"
    with pytest.raises(UserError, match=message):  # the config of the adapter is read afterwards
        load(tmp_path, **how)


@pytest.mark.unit
def test_a_method_that_is_one_template_is_a_base_for_demonstrations():
    assert ModelOptions(model="tiny", method="cot").base_template() is TEMPLATES["cot"]
    assert ModelOptions(model="tiny").base_template() is PROMPTEOL
    for name in ("ck", "tp/eol", "attention-sum"):
        with pytest.raises(UserError, match="is more than one template, which is wanted here"):
            ModelOptions(model="tiny", method=name).base_template()


@pytest.mark.slow
def test_fit_writes_a_record_that_encode_takes(tmp_path):
    texts = [f"A {w} runs {n}." for n, w in enumerate(["dog", "cat", "man", "bird"] * 10)]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    folder = tmp_path / "fitted"
    main(
        ["fit", "--model", "tiny", "--method", "mean-removal/eol"]
        + ["--input", str(tmp_path / "t.txt"), "--output", str(folder)]
    )
    assert library.find_method(folder).post[0].file == "1-center.npz"
    vectors = ModelOptions(model="tiny", method=str(folder)).load("float32").encode(texts)
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-5)


@pytest.mark.slow
def test_texts_too_few_to_fit_leave_no_folder(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("A dog runs.\nA cat sleeps.\n")
    with pytest.raises(SystemExit):
        main(
            ["fit", "--model", "tiny", "--method", "whitening/eol"]
            + ["--input", str(tmp_path / "t.txt"), "--output", str(tmp_path / "fitted")]
        )
    assert "fit on more texts" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["t.txt"]
