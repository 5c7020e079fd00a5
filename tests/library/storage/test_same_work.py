"""One comparison for work that is continued: it names everything that differs, and only that."""

from pathlib import Path

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.storage import same_work

pytestmark = pytest.mark.unit

WORK = {"dtype": "float32", "layers": (1, 2), "files": {"a": "12", "b": "34"}, "data": Path("d")}


def test_work_is_the_same_as_what_was_read_again_of_it():
    assert same_work.differences(same_work.recorded(WORK), WORK) == []
    same_work.check_same("runs/x", same_work.recorded(WORK), WORK, advice="Go")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is now 'bfloat16'"),
        ({"files": {"a": "12", "b": "35"}}, "files.b was '34' and is now '35'"),
        ({"files": {"a": "12"}}, "files.b was '34' and is now (nothing)"),
        ({"new": None}, "new was (nothing) and is now None"),
        ({"layers": (1,)}, "layers was [1, 2] and is now [1]"),
        ({"dtype": "x" * 200}, f"dtype was 'float32' and is now '{'x' * 99}..."),
    ],
)
def test_each_difference_is_told_by_name_with_both_values(change, told):
    assert same_work.differences(WORK, {**WORK, **change}) == [told]


def test_all_differences_stand_in_one_error_with_what_to_do():
    now = {**WORK, "dtype": "bfloat16", "layers": [3], "data": "elsewhere"}
    with pytest.raises(UserError) as error:
        same_work.check_same(
            "runs/x",
            WORK,
            now,
            advice="Give another --output",
            ignore=["data"],
            label="--{}".format,
        )
    assert str(error.value) == (
        "runs/x belongs to another run: --dtype was 'float32' and is now 'bfloat16'; "
        "--layers was [1, 2] and is now [3]. Give another --output"
    )
