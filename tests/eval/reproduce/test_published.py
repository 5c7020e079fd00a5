"""Published figures agree with themselves, name their source, and are found by a model's name."""

import pytest

from eval.reproduce import published
from prompteol_jax.text.template import TEMPLATES

ROWS = [(table, row) for table, rows in published.TABLES.items() for row in rows]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t} {r.name}" for t, r in ROWS])
def test_a_row_is_whole_and_sourced(table, row):
    tasks = published.tasks_of(table)
    assert set(row.scores) in (set(), set(tasks))
    assert bool(row.source) == (row.average is not None)
    assert row.template in TEMPLATES
    assert row.name.split(" ")[0].lower() in published.PARAMETERS
    if row.scores:
        # Sources average scores of two decimals; a half may have been rounded either way.
        mean = sum(row.scores.values()) / len(tasks)
        assert row.average == pytest.approx(mean, abs=0.0101)


def test_derived_averages_are_one_published_figure_less_another():
    improve = {
        **{"125m": 0.46, "350m": 3.99, "1.3b": 4.34, "2.7b": 8.88, "6.7b": 6.98},
        **{"13b": 7.18, "30b": 6.51, "66b": 9.35},
    }
    rows = {row.name: row for row in published.TABLES["sts-zero-shot"]}
    shown = {row.name: row.average for row in published.TABLES["sts-icl"]}
    for size, gain in improve.items():
        row = rows[f"opt-{size}"]
        assert row.average == pytest.approx(shown[row.name] - gain, abs=1e-9)
        assert row.derived == (size != "66b")


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("opt-125m", ["opt-125m"]),
        ("facebook/opt-125m@main", ["opt-125m"]),
        ("models/OPT-125m/", ["opt-125m"]),
        ("opt-12", []),
    ],
)
def test_a_row_is_found_by_name_and_folder(model, names):
    assert [row.name for row in published.find("sts-icl", model)] == names


def test_a_result_is_matched_with_its_row():
    match = published.match
    assert match("sts-icl", "x/opt-6.7b", "eol-icl-6.7b", None).average == 79.08
    assert match("sts-zero-shot", "x/opt-6.7b", "eol", None).average == 72.10
    tuned = match("sts-finetuned", "x/opt-6.7b", "eol", "mine/prompteol-opt-6.7b")
    assert tuned.average == 85.82
    assert match("sts-finetuned", "x/opt-6.7b", "eol", "mine/other") is None
    assert match("quantization", "x/opt-6.7b", "eol-icl-6.7b", None, "nf4").average == 79.38
    assert match("quantization", "x/opt-6.7b", "eol-icl-6.7b", None, "int8") is None
    assert match("transfer", "x/opt-6.7b", "eol", None).average == 91.34
    assert published.averages_by_size("sts-icl")[125e6] == 67.46
