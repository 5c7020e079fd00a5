"""Result files give back what was written, arrays included."""

import json

import numpy as np
import pytest

from eval.shared import results


def test_arrays_come_back_exactly_and_whole_numbers_take_few_bits(tmp_path):
    written = {
        "cosine": np.array([0.25, -1, 1 / 3]),
        "gold": np.array([0, 5, 255]),
        "many": np.array([70_000, 1]),
        "none": np.array([], np.int64),
    }
    file = tmp_path / "out.json"
    results.write(file, {"examples": {"STS12": written}, "data": tmp_path})
    plain = json.loads(file.read_text())
    assert plain["data"] == str(tmp_path)
    packed = plain["examples"]["STS12"]
    dtypes = {name: packed[name]["dtype"] for name in written}
    assert dtypes == {"cosine": "<f8", "gold": "|u1", "many": "<u4", "none": "|u1"}
    read = results.read(file)["examples"]["STS12"]
    np.testing.assert_array_equal(read["cosine"], written["cosine"])
    for name in ("gold", "many", "none"):
        np.testing.assert_array_equal(read[name], written[name])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '{"a": {"dtype": "<f4", "base64": "AAA"}}',
        '{"dtype": "|O", "base64": ""}',
    ],
)
def test_refuses_files_that_are_no_results(tmp_path, text):
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="odd.json is no result file: "):
        results.read(file)
