"""Laws of reading a config.json: all that is wrong at once, and by name."""

import pytest

from prompteol_jax.models.config import HARMLESS, Fields

pytestmark = pytest.mark.unit


def read(**fields):
    return Fields(fields)


@pytest.mark.parametrize(
    ("value", "default", "expected"), [(3, 5, 3), (None, 5, 5), (0, 5, 0), (False, True, False)]
)
def test_a_field_is_taken_as_it_stands_and_null_counts_as_absent(value, default, expected):
    f = read(a=value)
    assert f.take("a", default) is expected
    f.finish()


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, [8]])
def test_refuses_a_size_that_is_no_whole_number_from_one_up(value):
    f = read(a=value)
    assert f.integer("a") >= 1  # something to go on with, until `finish` speaks
    with pytest.raises(ValueError, match="a = .* is not a whole number from 1 up"):
        f.finish()


def test_refuses_a_field_that_nobody_asked_for_unless_it_is_null_or_harmless():
    read(**dict.fromkeys(HARMLESS, 7), new=None).finish()
    with pytest.raises(ValueError, match=r"sliding_window = 4096 is unknown and could change"):
        read(sliding_window=4096).finish()


def test_a_field_with_a_fixed_meaning_may_be_absent_but_not_different():
    f = read(act="relu", bias=None)
    for name, value in (("act", "relu"), ("bias", True), ("absent", 1)):
        f.expect(name, value)
    f.finish()
    f = read(act="gelu")
    f.expect("act", "relu")
    with pytest.raises(ValueError, match=r"act = 'gelu' is not supported; supported: \['relu'\]"):
        f.finish()


def test_all_problems_come_in_one_error():
    f = read(width=10, heads=3, act="gelu", layers=-1, strange=1)
    f.integer("width"), f.integer("heads"), f.integer("layers"), f.take("missing")
    f.expect("act", "relu")
    f.require_multiple("width", "heads")
    f.wrong("noted by a family")
    with pytest.raises(ValueError) as caught:
        f.finish()
    assert str(caught.value) == (
        "config.json: layers = -1 is not a whole number from 1 up; missing is missing; "
        "act = 'gelu' is not supported; supported: ['relu']; "
        "width = 10 is not a multiple of heads = 3; noted by a family; "
        "strange = 1 is unknown and could change the numbers"
    )
