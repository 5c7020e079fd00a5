"""The command of a launch is read, and completed, as the commands themselves read it."""

import pytest

from tpu.launch.job import flag_value, hosted, writes_to_bucket

TRAIN = ["python", "-m", "train.contrastive"]


@pytest.mark.parametrize(
    ("command", "again", "added"),
    [
        (TRAIN, False, ["--coordinator", "auto"]),
        (TRAIN, True, ["--coordinator", "auto", "--resume"]),
        ([*TRAIN, "--coordinator", "h:1", "--resume"], True, []),
        ([*TRAIN, "--coordinator=h:1"], False, []),
        (["prompteol", "encode"], True, ["--coordinator", "auto"]),
        (["python", "-m", "eval.sts"], True, []),
    ],
)
def test_processes_find_each_other_and_what_may_start_again_resumes(command, again, added):
    assert hosted(command, again=again) == [*command, *added]


@pytest.mark.parametrize(
    ("words", "value"),
    [("--output gs://b/x", "gs://b/x"), ("--output=gs://b/x", "gs://b/x"), ("--output", ""),
     ("--output=a --output b", "b"), ("--outputs gs://b/x", None), ("", None)],
)  # fmt: skip
def test_a_flag_is_read_in_both_forms(words, value):
    assert flag_value([*TRAIN, *words.split()], "--output") == value
    assert writes_to_bucket([*TRAIN, *words.split()]) == (value == "gs://b/x")
