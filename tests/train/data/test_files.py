"""Laws of files: the same rows come out of every kind."""

import csv
import gzip
import io
import json

import pytest

from train.data.files import files_of
from train.data.triplets import Triplet, columns_of, count_duplicates, read_triplets

pytestmark = pytest.mark.unit

ROWS = [
    {"sent0": "a man", "sent1": 'ein Mann, "ja"', "hard_neg": "é", "hard_neg_2": "no", "score": 1},
    {"sent0": "b", "sent1": "c", "hard_neg": "d", "hard_neg_2": "e", "score": 0.5},
    {"sent0": "b", "sent1": "c", "hard_neg": "d", "hard_neg_2": "e", "score": 0.5},
]


def as_csv():
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0])
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def as_jsonl():
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def save_table(path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), path)


def save_folder(path):
    path.mkdir()
    save_table(path / "part-0.parquet")


def save_dataset(path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


def save_splits(path):
    datasets = pytest.importorskip("datasets")
    both = {"train": ROWS, "test": ROWS[:1]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in both.items()}
    ).save_to_disk(path)


WRITERS = {
    "x.csv": lambda path: path.write_bytes(as_csv()),
    "x.csv.gz": lambda path: path.write_bytes(gzip.compress(as_csv())),
    "x.jsonl": lambda path: path.write_bytes(as_jsonl()),
    "x.JSONL.GZ": lambda path: path.write_bytes(gzip.compress(as_jsonl())),
    "x.parquet": save_table,
    "tables": save_folder,
    "dataset": save_dataset,
    "splits": save_splits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_files_of_rows_are_named_each_one_time(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    (file,) = files_of(path)
    assert file.is_file()
    assert path in (file, file.parent, file.parents[1])
    assert "test" not in file.parts[len(tmp_path.parts) :]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path, capfd):
    path = tmp_path / name
    WRITERS[name](path)
    rows = read_triplets(path).triplets
    assert [row._asdict() for row in rows] == ROWS
    assert columns_of(rows[0]) == tuple(ROWS[0])
    assert count_duplicates(rows) == 1
    names = {"sent0": "hard_neg_2", "score": "score", "sent1": "sent0"}
    renamed = read_triplets(path, columns=names).triplets
    assert [row._asdict() for row in renamed] == [
        {"sent0": r["hard_neg_2"], "sent1": r["sent0"], "score": r["score"]} for r in ROWS
    ]


def test_lines_of_text_are_sentences(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_bytes("\ufeffone é\r\n\n two \n".encode())
    rows = read_triplets(path).triplets
    assert ([row.sent0 for row in rows], rows.lines) == (["one é", " two "], [1, 3])


@pytest.mark.parametrize(
    ("row", "score"),
    [('"score": [1, 0.5]', (1.0, 0.5)), ('"score": "2"', 2.0), ('"score": -1e3', -1000.0)],
)
def test_a_score_is_a_number_or_a_list_of_numbers(row, score, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"sent0": "a", "sent1": "b", {row}}}\n')
    assert read_triplets(path).triplets[0].score == score


@pytest.mark.parametrize("score", ['"x"', "NaN", "true", "[]", "[1, null]", "null", '"inf"'])
def test_refuses_a_score_that_is_none(score, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"sent0": "a", "sent1": "b", "score": {score}}}\n')
    with pytest.raises(ValueError, match="line 1: score is no number"):
        read_triplets(path)


def test_a_null_negative_is_none(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"sent0": "a", "sent1": "b", "hard_neg": null, "hard_neg_2": null}\n')
    assert read_triplets(path).triplets == [Triplet("a", "b", None)]


def state(path, text):
    path.mkdir()
    (path / "state.json").write_text(text)


BROKEN = {
    "cut.csv.gz": (lambda p: p.write_bytes(gzip.compress(as_csv())[:-9]), "no whole gzip file"),
    "none.csv.gz": (lambda p: p.write_bytes(as_csv()), "no whole gzip file"),
    "x.parquet": (lambda p: p.write_bytes(b"PAR1 no"), "cannot be read as a table"),
    "outside": (
        lambda p: state(p, '{"_data_files": [{"filename": "../x.arrow"}]}'),
        "names no files of its own folder",
    ),
    "selection": (lambda p: state(p, '{"_indices_files": [{}]}'), "flatten_indices"),
    "nothing": (lambda p: state(p, "{}"), "names no files of its own folder"),
    "gone": (lambda p: state(p, '{"_data_files": [{"filename": "x"}]}'), "cannot be read as a"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_a_broken_file(name, tmp_path):
    write, message = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_triplets(tmp_path / name)


def test_refuses_columns_that_a_file_lacks(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(as_csv())
    with pytest.raises(
        ValueError, match=r"--columns names premise, .*x\.csv has the columns sent0,"
    ):
        read_triplets(path, columns={"sent0": "premise", "sent1": "sent1"})
