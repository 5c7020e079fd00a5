"""Laws of prepared datasets: rows come back as they were, in order, or with an error."""

import random

import pytest

from prompteol_jax.storage import array_record

pytestmark = pytest.mark.unit


class Letters(array_record.TextBuilder):
    name = "letters"
    DESCRIPTION = "Rows for these tests."


ROWS = [{"a": f"é {n}\n\x00", "b": "☃" * (n % 7)} for n in range(500)]


@pytest.fixture
def folder(tmp_path):
    Letters(tmp_path, ("a", "b"), {"train": ROWS, "dev": ROWS[:3]}, {"dropped": {"x": 2}}).write()
    return tmp_path


def test_rows_come_back_in_their_order(folder):
    dataset = array_record.Dataset(folder, "letters", ("a",))
    assert (sorted(dataset.columns), sorted(dataset.splits)) == (["a", "b"], ["dev", "train"])
    assert dataset.facts == {"dropped": {"x": 2}}
    rows = dataset.rows("train")
    assert list(rows) == ROWS
    assert rows[-1] == ROWS[-1]
    assert list(dataset.rows("dev")) == ROWS[:3]
    with pytest.raises(IndexError):
        rows[len(ROWS)]


@pytest.mark.parametrize("below", ["", "letters", "letters/1.0.0"])
def test_a_dataset_is_found_from_each_folder_above_it(folder, below):
    assert array_record.is_dataset(folder / below)
    assert len(array_record.Dataset(folder / below, "letters", ("a",)).rows("dev")) == 3


def test_a_changed_byte_is_an_error_or_changes_nothing(folder):
    (file,) = (folder / "letters" / "1.0.0").glob("letters-train*")
    intact = file.read_bytes()
    used = len(intact.rstrip(b"\0"))
    draw = random.Random(0)
    refused = 0
    for _ in range(20):
        damaged = bytearray(intact)
        damaged[draw.randrange(used)] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            read = list(array_record.Dataset(folder, "letters", ("a",)).rows("train"))
        except ValueError as error:
            assert "is damaged" in str(error)
            refused += 1
        else:
            assert read == ROWS
    assert refused > 10


def test_refusals(folder, tmp_path_factory):
    with pytest.raises(FileExistsError, match="remove it, or choose another folder"):
        Letters(folder, ("a", "b"), {"train": ROWS}, {}).write()
    with pytest.raises(
        ValueError, match="has the columns (a, b|b, a) and lacks c; it is no dataset"
    ):
        array_record.Dataset(folder, "letters", ("a", "c"))
    empty = tmp_path_factory.mktemp("empty")
    assert not array_record.is_dataset(empty)
    with pytest.raises(FileNotFoundError, match=r"one prepared dataset letters; found: none"):
        array_record.Dataset(empty, "letters", ("a",))
