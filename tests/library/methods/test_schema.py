"""Laws of the schema's rules: what each takes, and how it names what it refuses."""

from __future__ import annotations

import pytest

from prompteol_jax.methods import schema

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("rule", "taken", "refused"),
    [
        (schema.text, ["a"], ["", 1, None]),
        (schema.whole(2), [2, 10**9], [1, 2.0, True, 2**31, "2", None]),
        (schema.whole(), [-3], [2**31, 0.5]),
        (schema.number, [0, -1.5], [float("inf"), float("nan"), 10**400, True, "1"]),
        (schema.one_of("a", "b"), ["a"], ["c", 1]),
        (schema.optional(schema.text), [None, "a"], [3]),
        (schema.bound, [0, -2, 0.5], [1.0, 0.0, 2.5, True, None]),
        (schema.file_name, ["a.npz"], ["", "/a", "a/b", "..", ".", "a\\b", "../a"]),
        (schema.several(schema.text), [["a"], []], ["a", [1]]),
    ],
    ids=["text", "from-2", "whole", "number", "one-of", "optional", "bound", "file", "several"],
)
def test_a_rule_takes_what_it_says(rule, taken, refused):
    for value in taken:
        found = rule(value)
        assert list(found) == value if isinstance(value, list) else found == value
    for value in refused:
        with pytest.raises(schema.Misfit):
            rule(value)


def test_a_list_names_each_item_that_is_wrong():
    with pytest.raises(schema.Misfit) as error:
        schema.several(schema.text)(["a", 1, "b", 2])
    assert error.value.problems == (
        "[1] must be text, found 1",
        "[3] must be text, found 2",
    )
