"""Rows of one model load it once, and share the vectors of the prompts that they average."""

import dataclasses

import numpy as np
import pytest

from eval.reproduce import command as reproduce
from eval.reproduce.command import ReproduceOptions
from eval.reproduce.published import Row
from eval.reproduce.shared import Lender, PartEncoder
from eval.sts.command import StsOptions
from prompteol_jax import Embedder
from prompteol_jax.methods.library import find_method

pytestmark = pytest.mark.usefixtures("coarse")
TEXTS = ["A dog runs.", "Two women are playing guitar together", "x"]


def settings(method, folder, **changes):
    return StsOptions(model="tiny", data=folder, method=method, cache=folder / "kept", **changes)


@pytest.mark.slow
def test_a_model_is_loaded_once_for_methods_of_any_layer(tmp_path):
    lender = Lender()
    for name in ("eol", "cot", "attention-sum"):
        embedder, encoder = lender(settings(name, tmp_path))
        alone = Embedder.from_pretrained("tiny", dtype="float32", method=name)
        np.testing.assert_allclose(encoder.encode(TEXTS), alone.encode(TEXTS), atol=2e-5)
        assert embedder.method == find_method(name)
    assert lender.loads == 1


@pytest.mark.slow
def test_prompts_of_a_mean_come_from_the_vectors_of_others(data, tmp_path):
    model = str(data / "weights" / "tinystories-656k")
    lender = Lender()
    found = {}
    for name in ("ke", "cot", "ck"):
        options = dataclasses.replace(settings(name, tmp_path), model=model)
        embedder, encoder = lender(options)
        assert isinstance(encoder, PartEncoder)
        vectors = encoder.encode(TEXTS)
        found[name] = encoder.found
        np.testing.assert_allclose(vectors, embedder.encode(TEXTS), atol=2e-5)
    assert found == {"ke": 0, "cot": 0, "ck": 2 * len(TEXTS)}


@pytest.mark.slow
def test_rivals_are_compared_and_what_is_not_built_says_so(
    small_downstream, small_is_whole, tmp_path, monkeypatch, capsys
):
    rows = (
        Row("tiny", {}, 70.0, "a paper", method="eol"),
        Row("tiny", {}, 78.0, "another", method="dysem", missing="not built"),
        Row("x/absent", {}, 71.0, "a paper", method="eol"),
    )
    monkeypatch.setattr(reproduce, "rivals", lambda: rows)
    options = ReproduceOptions(
        table="rivals",
        models=("tiny", "absent"),
        data=small_downstream,
        output=tmp_path,
        no_cache=True,
    )
    result = reproduce.run(options)
    first, second, third = result["rows"]
    average = first["cells"][-1]
    assert average["published"] == 70.0
    assert average["difference"] == round(average["ours"] - 70.0, 2)
    assert second["reason"] == "not built" and "absent" in third["reason"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "tiny dysem is not available: not built" in shown
    with pytest.raises(ValueError, match="--template: methods of table rivals bring their own"):
        reproduce.run(dataclasses.replace(options, template="eol"))
