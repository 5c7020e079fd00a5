"""BEIR folders are read strictly: each problem is named with its file and line."""

from __future__ import annotations

import gzip
import json

import pytest

from eval.retrieval import beir
from prompteol_jax.errors import NotFound, UserError

pytestmark = pytest.mark.unit

CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "A cat sleeps."},
    {"_id": "d2", "text": ""},
    {"_id": "d3", "title": "", "text": "A dog."},
]
QUERIES = [{"_id": "q1", "text": "cat"}, {"_id": "q2", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td3\t0\n"


def write(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS, zipped=False):
    (folder / "qrels").mkdir(parents=True)
    files = {
        "corpus.jsonl": "".join(json.dumps(row) + "\n" for row in corpus),
        "queries.jsonl": "".join(json.dumps(row) + "\n" for row in queries),
        "qrels/test.tsv": qrels,
    }
    for name, text in files.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_is_read_titles_joined_and_unjudged_queries_left_out(tmp_path, zipped):
    task = beir.read(write(tmp_path / "cats", zipped=zipped))
    assert (task.name, task.split, task.unjudged) == ("cats", "test", 1)
    assert list(task.corpus.texts()) == ["Cats A cat sleeps.", "", "A dog."]
    assert list(task.corpus.texts()) == ["Cats A cat sleeps.", "", "A dog."]  # read again
    assert task.corpus.characters_n.tolist() == [18, 0, 6]
    assert task.corpus.chosen({"d3"}) == {"d3": "A dog."}
    assert (task.queries.ids, task.queries.texts) == (["q1"], ["cat"])
    assert task.qrels == {"q1": {"d1": 2, "d3": 0}}


def test_a_line_of_white_space_is_no_document_however_it_is_written(tmp_path):
    folder = write(tmp_path / "cats")
    path = folder / "corpus.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    blank = ["\ufeff \n", "\n", "\u2003\n", "\x1d\r\n"]
    pairs = zip(blank, [*lines, ""], strict=True)
    path.write_text("".join(part for pair in pairs for part in pair), encoding="utf-8")
    corpus = beir.read(folder).corpus
    assert corpus.ids == ["d1", "d2", "d3"]
    assert list(corpus.texts()) == ["Cats A cat sleeps.", "", "A dog."]


HEADER = "query-id\tcorpus-id\tscore\n"
BAD = [
    (dict(corpus=[*CORPUS, CORPUS[0]]), "corpus.jsonl:4: the id 'd1' was given on line 1 already"),
    (dict(corpus=[{"_id": 7, "text": "x"}]), "corpus.jsonl:1: _id must be a string"),
    (dict(queries=[["q1"]]), "queries.jsonl:1: a JSON list, not an object with _id, text"),
    (dict(qrels="q1\td1\t2\n"), "test.tsv:1: the header must be query-id corpus-id score"),
    (dict(qrels=HEADER + "q1 d1 2\n"), "test.tsv:2: 1 cells, expected 3 separated by tabs"),
    (dict(qrels=HEADER + "q9\td9\t1\n"), "test.tsv:2: unknown query 'q9' and document 'd9'"),
    (dict(qrels=HEADER + "q1\td1\t0.5\n"), "test.tsv:2: the score '0.5' is not a whole number"),
    (dict(qrels=HEADER + "q1\td1\t1\n" * 2), "query 'q1' judges document 'd1' twice"),
    (dict(qrels=HEADER), "judges no document"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_malformed_files_are_refused_by_file_and_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        beir.read(write(tmp_path / "bad", **change))


def test_all_problems_come_in_one_error(tmp_path):
    folder = write(tmp_path / "bad", corpus=[{"_id": 1, "text": 2}], queries=[{"text": "x"}])
    with pytest.raises(UserError, match="4 problems"):
        beir.read(folder)


def test_a_missing_split_names_those_that_exist(tmp_path):
    with pytest.raises(NotFound, match=r"qrels/dev\.tsv; splits there: test"):
        beir.read(write(tmp_path / "cats"), split="dev")
