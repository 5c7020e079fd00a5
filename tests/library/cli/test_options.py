"""Ranges of flags are checked once, in one way, and all problems stand in one error."""

import dataclasses
import shutil

import pytest

from prompteol_jax.cli.options import DistributedOptions, ModelOptions, check, flag
from prompteol_jax.errors import UserError
from prompteol_jax.methods import library

pytestmark = pytest.mark.unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DistributedOptions):
    batch: int = flag(256, at_least=2, why="every anchor needs negatives")
    dropout: float = flag(0.0, at_least=0, below=1)
    lr: float | None = flag(None, above=0)
    scale: float = 1.0
    count: int = 0
    fast: bool = False


@pytest.mark.parametrize(
    "given", [{}, {"batch": 2}, {"dropout": 0.99}, {"lr": 1e-9}, {"fast": True}, {"scale": -1.0}]
)
def test_values_within_their_ranges_pass(given):
    check(Options(**given))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batch": 1}, "--batch 1 must be at least 2: every anchor needs negatives"),
        ({"dropout": 1.0}, "--dropout 1.0 must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "--dropout nan must be at least 0 and below 1"),
        ({"lr": float("inf")}, "--lr inf must be above 0"),
        ({"scale": float("nan")}, "--scale nan must be finite"),
        (
            {"batch": 10**400},
            f"--batch {10**400} must be at least 2 and below 2**63: every anchor needs negatives",
        ),
        ({"count": 2**63}, "--count 9223372036854775808 must be below 2**63"),
        ({"wait_minutes": 0.0}, "--wait-minutes 0.0 must be above 0 and at most 10000"),
        (
            {"batch": 0, "lr": 0.0, "process": 1},
            "",
        ),
    ],
)
def test_every_value_out_of_range_is_told_with_what_is_allowed(given, told):
    with pytest.raises(UserError) as error:
        check(Options(**given))
    if len(given) > 1:
        assert all(f"--{name}" in str(error.value) for name in given)
    else:
        assert str(error.value) == told


def test_work_holds_every_flag_that_decides_a_vector_and_no_other():
    work = ModelOptions(model="tiny").work("float32")
    names = {field.name for field in dataclasses.fields(ModelOptions)}
    not_decisive = {"mesh", "fsdp", "batch_tokens", "plan", "any_method", "method"}
    assert names - work.keys() == not_decisive
    assert work["dtype"] == "float32" and work["weights"] == "tiny"
    assert ModelOptions(model="tiny", mesh="2x1").work("float32") == work
    assert ModelOptions(model="tiny", template="none").work("float32") != work
    assert "method" in ModelOptions(model="tiny", method="cot").work("float32")


@pytest.mark.parametrize(
    "use",
    [lambda options: options.work("float32"), lambda options: options.load("float32")],
    ids=["work", "load"],
)
def test_a_folder_of_sentence_transformers_needs_a_prompt_that_is_asked_for(use, data, tmp_path):
    folder = shutil.copytree(data / "weights/tinystories-656k", tmp_path / "model")
    (folder / "modules.json").write_text("[]")
    message = "folder of sentence-transformers.*--method eol.*SentenceEmbedder in Python"
    with pytest.raises(UserError, match=message):
        use(ModelOptions(model=str(folder)))


def test_such_a_folder_is_read_with_a_prompt_or_where_we_wrote_it(data, tmp_path):
    folder = shutil.copytree(data / "weights/tinystories-656k", tmp_path / "model")
    (folder / "modules.json").write_text("[]")
    asked = [{"method": "eol"}, {"template": "cot"}]
    assert all(ModelOptions(model=str(folder), **how).work("float32") for how in asked)
    library.write_method(folder / library.FILE, library.find_method("eol"))
    assert ModelOptions(model=str(folder)).work("float32")
