"""Laws of transforms: which texts take the place of a text."""

from __future__ import annotations

import json

import pytest

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.methods.record import Transform
from prompteol_jax.methods.transforms import flattened, read_expansions, variants_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("transform", "text", "expected"),
    [
        (Transform("reversed-words"), "a dog  runs.", ["runs. dog a"]),
        (Transform("reversed-words"), "", [""]),
        (Transform("chunks", words=2), "a b c d e", ["a b", "c d", "e"]),
        (Transform("chunks", words=9), "a b", ["a b"]),
        (Transform("chunks", words=9), " ", [" "]),
    ],
    ids=["reversed", "reversed-empty", "chunks", "one-chunk", "no-word"],
)
def test_a_transform_gives_the_texts_it_names(transform, text, expected):
    variants = variants_of(transform, None)
    assert variants is not None and variants(text) == expected


def test_texts_are_flattened_with_their_owners():
    chunks = variants_of(Transform("chunks", words=1), None)
    assert flattened(chunks, ["a b", "c"]) == (["a", "b", "c"], [0, 0, 1])
    assert variants_of(None, None) is None


def test_an_expansion_file_serves_texts_and_cleaned_texts(tmp_path):
    lines = [{"text": "a dog", "variants": ["one dog", "dogs?"]}, {"text": "b", "variants": ["c"]}]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    variants = variants_of(Transform("expansion", file="v.jsonl"), tmp_path)
    assert variants("a dog") == ["one dog", "dogs?"]
    assert variants("a dog.") == ["one dog.", "dogs."]
    with pytest.raises(UserError, match="v.jsonl has no variants of the text 'x'"):
        variants("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "v.jsonl:1 is not JSON"),
        ('{"text": "a"}', 'v.jsonl:1 must be {"text": text'),
        ('{"text": "a", "variants": []}', "v.jsonl:1 must be"),
        ('{"text": "a", "variants": [1]}', "v.jsonl:1 must be"),
        ('{"text": "a", "variants": ["b"]}\n' * 2, "v.jsonl:2: the text is there twice"),
    ],
    ids=["json", "missing", "none", "type", "twice"],
)
def test_a_bad_expansion_file_is_refused_by_line(content, message, tmp_path):
    (tmp_path / "v.jsonl").write_text(content)
    with pytest.raises(UserError) as error:
        read_expansions(tmp_path / "v.jsonl")
    assert message in str(error.value)


def test_an_expansion_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "v.jsonl").write_bytes('{"text": "caf\u00e9", "variants": ["b"]}'.encode("latin-1"))
    with pytest.raises(UserError, match="v.jsonl is not UTF-8"):
        read_expansions(tmp_path / "v.jsonl")


def test_a_missing_file_is_said_before_any_work(tmp_path):
    with pytest.raises(NotFound, match="expansion file .*none.jsonl does not exist"):
        variants_of(Transform("expansion", file="none.jsonl"), tmp_path)
    with pytest.raises(UserError, match="the record names none; write the record to a folder"):
        variants_of(Transform("expansion"), tmp_path)
