"""Targets of methods without training come from the records, with their sources."""

import pytest

from eval.reproduce import published
from eval.reproduce.rivals import rivals, untrained_methods
from prompteol_jax.methods.library import find_method, shipped

pytestmark = pytest.mark.unit

ROWS = rivals()
# notes of the papers, written down once more: method, model, average
SOME = [
    ("eol", "meta-llama/Llama-2-7b-hf", 70.03),
    ("cp-ns/eol", "meta-llama/Llama-2-7b-hf", 75.27),
    ("tp/eol", "meta-llama/Llama-2-7b-hf", 77.19),
    ("metaeol", "meta-llama/Llama-2-7b-hf", 75.96),
    ("tp/metaeol", "meta-llama/Llama-2-7b-hf", 77.91),
    ("ck", "meta-llama/Llama-2-7b-hf", 78.23),
    ("cp-ns/ck", "meta-llama/Llama-2-7b-hf", 78.68),
    ("cot", "Qwen/Qwen2-7B", 72.94),
    ("tp/cot/qwen2-7b", "Qwen/Qwen2-7B", 75.11),
    ("cot", "google/gemma-2-9b", 77.02),
    ("tp/cot/gemma-2-9b", "google/gemma-2-9b", 77.52),
    ("echo", "meta-llama/Llama-2-7b-hf", 66.05),
    ("cp-ns/eol-icl-6.7b", "facebook/opt-6.7b", 79.38),
    ("aligned-values", "Qwen/Qwen3-8B", 74.79),
    ("mean", "meta-llama/Llama-2-7b-hf", 47.06),
]


@pytest.mark.parametrize(("method", "model", "average"), SOME, ids=[f"{a}-{b}" for a, b, _ in SOME])
def test_a_published_average_is_a_target(method, model, average):
    rows = [row for row in ROWS if (row.method, row.model) == (method, model)]
    assert average in [row.average for row in rows if row.source]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_row_is_sourced_and_its_scores_agree_with_its_average(row):
    assert row.source and row.average is not None
    assert bool(row.missing) != (row.method in shipped())
    if row.scores:
        mean = sum(row.scores.values()) / len(published.STS)
        assert row.average == pytest.approx(mean, abs=0.0101)


def test_scores_by_task_are_found_for_all_that_print_them():
    with_cells = {(row.method, row.model.split("/")[-1]) for row in ROWS if row.scores}
    assert {
        *(("eol", f"{name}") for name in ("Llama-2-7b-hf", "Meta-Llama-3-8B", "Llama-3.1-8B")),
        *(("eol", name) for name in ("Qwen2.5-7B", "Qwen3-8B")),
        *(("tp/eol", "Llama-2-7b-hf"), ("metaeol", "Llama-2-7b-hf")),
        ("eol-icl-6.7b", "opt-6.7b"),
    } <= with_cells


def test_a_model_that_nobody_published_is_run_with_every_method_once():
    methods = untrained_methods()
    assert len(set(methods)) == len(methods) > 15
    assert all(find_method(method).name == method for method in methods)
