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


def like(**changes):
    """A result that was run as a row of the zero-shot table was, but for the changes."""
    scores = dict.fromkeys(published.STS, 60.0)
    result = {"model": "x/opt-6.7b", "template": "eol", "adapter": None, "quantize": None}
    result |= {"layer": None, "pooling": "last", "clean": True, "options": {}, "average": 60.0}
    result |= {"scores": scores, "data": {"split": "test", "incomplete": {}}}
    return result | changes


ROW = published.match("sts-zero-shot", "Llama-2-7b-hf", "eol", None)
OTHER_TEXT = {"template": {"prefix": "x", "suffix": "y", "demonstrations": []}}


def test_a_result_of_the_same_kind_is_compared_cell_by_cell():
    cells = {cell.task: cell for cell in published.cells(like(), ROW, "sts-zero-shot")}
    assert cells.keys() == {*published.STS, "average"}
    assert all(cell.why_not == "" for cell in cells.values())
    assert cells["STS12"].difference == round(60 - 58.81, 2)
    assert cells["average"].published == 70.03


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data": {"split": "dev", "incomplete": {}}}, "the dev split"),
        ({"layer": 1}, "layer 1"),
        ({"pooling": "mean"}, "mean pooling"),
        ({"clean": False}, "sentences as they are"),
        ({"options": {"fast": True}}, "the fast protocol"),
        ({"protocol": {"seed": 3}}, "seed 3"),
        ({"provenance": OTHER_TEXT}, "another text under the name of template eol"),
        ({"layer": -2, "pooling": "mean"}, "layer -2; mean pooling"),
    ],
)
def test_a_result_of_another_kind_is_not_compared(changes, why):
    for cell in published.cells(like(**changes), ROW, "sts-zero-shot"):
        assert (cell.published, cell.difference, cell.why_not) == (None, None, why)


def test_an_average_is_compared_over_all_tasks_of_complete_data_alone():
    two = like(scores={"STS12": 60.0, "STS13": 60.0})
    cells = {cell.task: cell for cell in published.cells(two, ROW, "sts-zero-shot")}
    assert cells["STS12"].published == 58.81 and cells["average"].published is None
    assert cells["average"].why_not == "not of all tasks"
    part = like(data={"split": "test", "incomplete": {"STS13": "5 rows, published 1,500"}})
    cells = {cell.task: cell for cell in published.cells(part, ROW, "sts-zero-shot")}
    assert cells["STS12"].published == 58.81 and cells["STS13"].published is None
    assert cells["average"].why_not == "not of the published data"


@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({}, "sts-zero-shot"),
        ({"template": "article-icl", "provenance": {"template": {"demonstrations": []}}}, None),
        ({"template": "mine", "provenance": {"template": {"demonstrations": [1]}}}, "sts-icl"),
        (
            {"quantize": "nf4", "provenance": {"template": {"demonstrations": [1]}}},
            "quantization",
        ),
        ({"adapter": "a"}, "sts-finetuned"),
        ({"protocol": {"seed": 1111}}, "transfer"),
    ],
)
def test_the_table_follows_from_what_was_run_and_not_from_names(changes, table):
    assert published.table_of(like(**changes)) == (table or "sts-zero-shot")
