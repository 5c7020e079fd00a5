"""Laws of a caller's texts: ordered strings are taken as they are, all else is refused by name."""

import io
import pathlib

import numpy as np
import pytest

from prompteol_jax.text.texts import as_texts as checked

pytestmark = pytest.mark.unit

as_texts = getattr(checked, "__wrapped__", checked)  # past the annotation, for what is refused
TEXTS = ["a dog", "two men"]


def frame():
    return pytest.importorskip("pandas").DataFrame({"text": TEXTS, "n": [1, 2]}, index=[7, 9])


@pytest.mark.parametrize(
    "given",
    [
        lambda: TEXTS,
        lambda: tuple(TEXTS),
        lambda: (text for text in TEXTS),
        lambda: iter(TEXTS),
        lambda: dict.fromkeys(TEXTS).keys() and {1: "a dog", 2: "two men"}.values(),
        lambda: np.array(TEXTS),
        lambda: np.array(TEXTS, object),
        lambda: [np.str_(text) for text in TEXTS],
        lambda: frame()["text"],
        lambda: frame()["text"].astype("string"),
        lambda: pytest.importorskip("pyarrow").array(TEXTS),
    ],
)
def test_ordered_strings_are_texts(given):
    assert as_texts(given()) == TEXTS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: "one text", r"texts is one string; give a list of strings: encode\(\[text\]\)"),
        (lambda: b"one", "texts is bytes; decode it"),
        (lambda: pathlib.Path("texts.txt"), "texts is a path; read it"),
        (lambda: io.StringIO("a dog\n"), "texts is an open file; give its lines"),
        (frame, r"texts is a table \(DataFrame\); give one column"),
        (lambda: {"a": "a dog"}, r"texts is a dict; give its values: encode\(list\(texts.values"),
        (lambda: set(TEXTS), "texts is a set, which has no order"),
        (lambda: np.array([TEXTS]), "texts is an array of 2 axes"),
        (lambda: 3, "texts is int; give a list of strings"),
        (lambda: ["a", None, 3], r"texts\[1\] is NoneType, not str \(2 such entries\)"),
        (lambda: [b"a"], r"texts\[0\] is bytes, not str \(1 such entries\)"),
        (lambda: np.array([1.0, 2.0]), r"texts\[0\] is float, not str"),
    ],
)
def test_anything_else_is_a_type_error_that_says_what_to_pass(given, message):
    with pytest.raises(TypeError, match=message):
        as_texts(given())
