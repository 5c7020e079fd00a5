"""What can be swept: values of a record's own parts, and nothing that it does not have."""

import pytest

from eval.search.axes import AXES, parse_axes
from prompteol_jax.errors import UserError
from prompteol_jax.methods.record import Method

pytestmark = pytest.mark.unit

FIELDS = {
    "name": "both",
    "prompts": [{"prefix": 'This sentence : <PST> "', "suffix": '" means in one word:"'}],
    "layer": 3,
    "copy": {"start": 1, "exit": 3},
    "subtract": {"block": 2, "kind": "ns", "scale": 2.0, "template": "eol"},
    "collect": None,
    "post": [{"kind": "center"}, {"kind": "truncate", "dims": 8}],
}
BOTH = Method.from_json(FIELDS, "test")
PLAIN = Method.from_json({"name": "plain", "prompts": ["eol"]}, "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer", {"layer": [1, 2, 3, 4]}),
        ("layer=-1/-2", {"layer": [4, 3]}),
        ("exit", {"exit": [1, 2, 3, 4]}),
        ("exit=0/2..4/4", {"exit": [0, 2, 3, 4]}),
        ("start,block", {"start": [0, 1, 2, 3], "block": [0, 1, 2, 3]}),
        ("scale", {"scale": [0.5, 1.0, 2.0, 3.0, 4.0]}),
        ("scale=-1/0.25", {"scale": [-1.0, 0.25]}),
        ("dims=4/2", {"dims": [4, 2]}),
    ],
)
def test_settings_have_usual_values_or_those_given(text, expected):
    assert parse_axes(text, BOTH, 4) == expected


@pytest.mark.parametrize(
    ("text", "method", "message"),
    [
        ("", PLAIN, "nothing to sweep. Method plain has layer; values are given as"),
        ("laier", BOTH, r"'laier' cannot be swept \(did you mean layer\?\)"),
        ("exit", PLAIN, "method plain has no copy, so no exit"),
        ("layer,layer", BOTH, "layer is given twice"),
        ("layer=0", BOTH, "layer 0 is the embedding of words"),
        ("layer=5", BOTH, "5 must be between -4 and 4 in this model"),
        ("exit=3..1", BOTH, "the range 3..1 must rise"),
        ("exit=0..999999999999", BOTH, "over at most 100,000 values"),
        ("exit=x", BOTH, "exit=x: invalid literal"),
        ("scale=nan", BOTH, "nan must be between"),
        ("exit=9,slot", BOTH, "exit=9: 9 must be .*; method both has no slot"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(text, method, message):
    with pytest.raises(UserError, match=message):
        parse_axes(text, method, 4)


@pytest.mark.parametrize("name", [name for name, axis in AXES.items() if axis.has(BOTH)])
def test_a_value_is_set_in_its_own_part_alone(name):
    axis = AXES[name]
    changed = axis.set(BOTH, axis.kind(4))
    assert axis.get(changed) == 4 != axis.get(BOTH)
    assert axis.set(changed, axis.get(BOTH)) == BOTH
