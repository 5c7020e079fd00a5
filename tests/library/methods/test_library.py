"""Laws of the shipped records: each is read as it is written, and says where it is from."""

from __future__ import annotations

import json

import pytest

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.methods.library import FILE, RECORDS, find_method, shipped, write_method
from prompteol_jax.text.template import TEMPLATES

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_record_is_named_like_its_file_and_written_as_it_is_read(name):
    fields = json.loads(shipped()[name].read_text(encoding="utf-8"))
    method = find_method(name)
    assert method.name == name and method.to_json() == fields
    assert method.about and (method.paper or method.unverified or name == "mean")
    assert method.folder == shipped()[name].parent


def test_every_method_of_the_family_is_shipped():
    first = {name.split("/")[0] for name in shipped()}
    assert first >= {
        *("eol", "cot", "ke", "ck", "metaeol", "tp", "cp-ns", "cp-nr", "attention-sum"),
        *("aligned-values", "echo", "kv-embedding", "reverse-eol", "embed-filter", "geneol"),
        *("mean-removal", "whitening", "sum", "sth"),
    }
    languages = {name for name in first if name.startswith("eol-") and len(name) == len("eol-xx")}
    assert len(languages) == 11  # and English
    assert {name for name in TEMPLATES if name.startswith("eol-icl")} <= first


def test_contradicting_readings_are_two_records():
    paper, repository = (find_method(f"cp-ns/eol{end}") for end in ("", "/repository"))
    assert (paper.subtract.scale, repository.subtract.scale) == (2.0, 0.5)


def test_token_prepending_changes_one_place_of_the_prompt():
    plain, marked = find_method("metaeol").prompts, find_method("tp/metaeol").prompts
    assert len(plain) == len(marked) == 8
    for a, b in zip(plain, marked, strict=True):
        assert b.template.prefix == a.template.prefix[:-1] + '<PST> "'
        assert b.template.suffix == a.template.suffix


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"unknown method 'tp/eo' \(did you mean tp/eol\?\)"):
        find_method("tp/eo")
    with pytest.raises(NotFound, match=r"method file .*none.json does not exist"):
        find_method("none.json")


def test_a_record_is_read_from_a_file_or_its_folder(tmp_path):
    method = find_method("cp-ns/ck")
    write_method(tmp_path / FILE, method)
    assert find_method(tmp_path) == find_method(tmp_path / FILE) == method
    assert find_method(str(tmp_path)).folder == tmp_path
    assert find_method(method) is method


def test_the_package_ships_every_record():
    assert RECORDS.is_dir() and len(shipped()) == len(list(RECORDS.rglob("*.json")))
