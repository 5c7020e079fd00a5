"""Words that every error shares: lists cut to a length, the nearest known name."""

import pytest

from prompteol_jax import errors

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("items", "limit", "told"),
    [([], 2, "none"), (["a"], 2, "a"), ("abc", 3, "a, b, c"), (range(5), 2, "0, 1 and 3 more")],
)
def test_a_long_list_is_cut_and_counted(items, limit, told):
    assert errors.listed(items, limit) == told


def test_a_list_of_lines_is_cut_and_counted_too():
    assert errors.listed_lines("abc", 2) == "\n  a\n  b\n  and 1 more"


@pytest.mark.parametrize(
    ("problems", "total", "told"),
    [("ab", None, "a; b"), ("abc", None, "a; b; and 1 more"), ("ab", 7, "a; b; and 5 more")],
)
def test_a_list_of_problems_is_cut_and_counted_too(problems, total, told):
    assert errors.listed_problems(problems, 2, total=total) == told


def test_the_nearest_known_name_is_offered_if_one_is_near():
    assert errors.nearest("STS-B", ["STSB", "SICK"]) == " (did you mean STSB?)"
    assert errors.nearest("zzz", ["STSB", "SICK"]) == ""
