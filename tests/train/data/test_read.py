"""Laws of a run's data: its record changes with any of the files that it trains on."""

import pytest

from train.config import TrainConfig
from train.data.read import read_data

pytestmark = pytest.mark.unit


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"sent0,sent1\n{text},b\n")
    return str(path)


@pytest.mark.parametrize("changed", ["a", "b"])
def test_files_of_one_name_are_recorded_each(changed, tmp_path):
    config = TrainConfig(data=tuple(write(tmp_path / name / "x.csv", name) for name in "ab"))
    before = read_data(config).work
    assert before == read_data(config).work
    write(tmp_path / changed / "x.csv", "other")
    assert before != read_data(config).work


def test_one_source_is_recorded_by_the_names_of_its_files(tmp_path):
    data = write(tmp_path / "a" / "x.csv", "a")
    assert [*read_data(TrainConfig(data=data)).work["data"]] == ["x.csv"]
