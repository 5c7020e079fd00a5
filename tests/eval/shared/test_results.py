"""Result files give back what was written, arrays included."""

import json

import numpy as np
import pytest

from eval.shared import results

pytestmark = pytest.mark.unit


def test_arrays_come_back_exactly_and_whole_numbers_take_few_bits(tmp_path):
    written = {
        "cosine": np.array([0.25, -1, 1 / 3]),
        "gold": np.array([0, 5, 255]),
        "many": np.array([70_000, 1]),
        "none": np.array([], np.int64),
    }
    file = tmp_path / "out.json"
    results.write(file, {"examples": {"STS12": written}, "data": tmp_path})
    plain = json.loads(file.read_text())
    assert plain["data"] == str(tmp_path)
    packed = plain["examples"]["STS12"]
    dtypes = {name: packed[name]["dtype"] for name in written}
    assert dtypes == {"cosine": "<f8", "gold": "|u1", "many": "<u4", "none": "|u1"}
    read = results.read(file)["examples"]["STS12"]
    np.testing.assert_array_equal(read["cosine"], written["cosine"])
    for name in ("gold", "many", "none"):
        np.testing.assert_array_equal(read[name], written[name])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '{"a": {"dtype": "<f4", "base64": "AAA"}}',
        '{"dtype": "|O", "base64": ""}',
    ],
)
def test_refuses_files_that_are_no_results(tmp_path, text):
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="odd.json is no result file: "):
        results.read(file)


PLAIN = {"model": "x/m", "template": "eol", "dtype": "float32"}
PROTOCOL = {"folds": 5, "optimizer": "rmsprop", "seed": 1111}


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "x/m, template eol, float32"),
        ({"adapter": "runs/a"}, "x/m, adapter runs/a, template eol, float32"),
        ({"quantize": "nf4"}, "x/m, template eol, float32, weights in nf4"),
        ({"layer": -2, "pooling": "mean"}, "x/m, template eol, float32, layer -2, mean pooling"),
        ({"clean": False}, "x/m, template eol, float32, raw sentences"),
        ({"data": {"split": "dev"}}, "x/m, template eol, float32, dev split"),
        ({"data": {"split": "test", "incomplete": {}}}, "x/m, template eol, float32"),
        (
            {"data": {"split": "test", "incomplete": {"MR": "5 rows, published 10,662"}}},
            "x/m, template eol, float32, not the published MR",
        ),
        (
            {"strict_original": "float16"},
            "x/m, template eol, float32, as the released script, vectors in float16",
        ),
        (
            {"protocol": PROTOCOL, "options": {"fast": True}},
            "x/m, template eol, float32, fast protocol",
        ),
        ({"task_templates": {"STS": {}}}, "x/m, template eol, float32, other templates for STS"),
        ({"task_methods": {"STS": {}}}, "x/m, template eol, float32, other methods for STS"),
    ],
)
def test_a_title_names_every_setting_that_is_not_usual(changes, title):
    assert results.title(PLAIN | changes) == title
    assert results.page_title("STS", PLAIN | changes).startswith("STS: m, ")


def test_the_facts_of_a_page_name_settings_data_date_and_version():
    data = {"split": "test", "folder": "/d", "incomplete": {"MR": "5 rows, published 10,662"}}
    made = {"date": "2026-11-30 10:00 UTC", "version": "0.1.0", "seconds": 1234.5}
    facts = results.facts(PLAIN | made | {"data": data, "adapter": "a", "from_cache": 7})
    assert (facts["adapter"], facts["layer"], facts["pooling"]) == ("a", "last", "last")
    assert facts["data"] == "/d"
    assert facts["data is"] == "not as published: MR 5 rows, published 10,662"
    assert facts["made"] == "2026-11-30 10:00 UTC, version 0.1.0"
    assert facts["time"] == "1,234.5 s, with 7 vectors of earlier runs"


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    results.write(tmp_path / "r.json", {"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}
