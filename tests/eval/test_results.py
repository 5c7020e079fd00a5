"""Result files have one form, and a place to be written before anything is computed."""

import json

import pytest

from eval import results
from prompteol_jax.options import ModelOptions


def test_folders_are_made_and_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    results.prepare(tmp_path / "a" / "b.json", None, tmp_path / "c" / "d.html")
    assert (tmp_path / "a").is_dir() and (tmp_path / "c").is_dir()
    with pytest.raises(IsADirectoryError, match="found a folder: .*a, .*c"):
        results.prepare(tmp_path / "a", tmp_path / "c")


def test_a_result_begins_with_names_and_ends_with_its_record(bag_of_words, tmp_path):
    options = ModelOptions(model="bag", quantize="nf4")
    result = {**results.header(bag_of_words), **results.record(bag_of_words, options)}
    results.write(tmp_path / "r.json", result | {"path": tmp_path})
    found = json.loads((tmp_path / "r.json").read_text())
    assert list(found) == ["model", "template", "dtype", "options", "provenance", "path"]
    assert found["provenance"]["model"]["name"] == "bag[of]words"
    assert found["options"]["quantize"] == "nf4"


@pytest.mark.parametrize(
    ("more", "title"),
    [
        ({}, "m, template eol, float32"),
        ({"clean": False}, "m, template eol, float32, raw sentences"),
        ({"options": {"quantize": "nf4"}}, "m, template eol, float32, weights in nf4"),
        (
            {"strict_original": "float16"},
            "m, template eol, float32, as the released script, vectors in float16",
        ),
    ],
)
def test_a_title_names_whatever_was_not_usual(more, title):
    result = {"model": "m", "template": "eol", "dtype": "float32"} | more
    assert results.title(result) == title
