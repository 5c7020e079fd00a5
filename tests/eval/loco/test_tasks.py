"""LoCoV1's layout is read strictly, and its sizes are compared with the published ones."""

from __future__ import annotations

import gzip
import json

import pytest

from eval.loco import tasks as loco
from prompteol_jax.errors import NotFound, UserError

pytestmark = pytest.mark.unit


def write(folder, name, documents, queries, hub=False):
    """Write one task; `hub` as the two repositories of the hub have it, gzipped."""
    places = (
        ("LoCoV1-Documents/documents", "LoCoV1-Queries/documents")
        if hub
        else ("documents", "queries")
    )
    for place, rows in zip(places, (documents, queries), strict=True):
        (folder / place).mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps({"dataset": name, **row}) + "\n" for row in rows)
        if hub:
            path = folder / place / f"{name}_test.jsonl.gz"
            path.write_bytes(gzip.compress(text.encode()))
        else:
            (folder / place / f"{name}_test.jsonl").write_text(text, encoding="utf-8")


def small(name, count=3):
    documents = [{"pid": f"{name}_Passage_{n}", "passage": f"text {n}"} for n in range(count)]
    queries = [
        {"qid": f"{name}_Query_{n}", "query": f"ask {n}", "answer_pids": [f"{name}_Passage_{n}"]}
        for n in range(count)
    ]
    return documents, queries


@pytest.mark.parametrize("hub", [False, True])
def test_a_task_has_every_document_and_the_queries_answers(tmp_path, hub):
    write(tmp_path, "qmsum", *small("qmsum"), hub=hub)
    (task,) = loco.read(tmp_path, ["qmsum"])
    assert (task.name, len(task.corpus), task.queries.texts) == (
        "qmsum",
        3,
        ["ask 0", "ask 1", "ask 2"],
    )
    assert task.qrels["qmsum_Query_1"] == {"qmsum_Passage_1": 1}
    assert list(task.corpus.texts()) == ["text 0", "text 1", "text 2"]
    assert loco.incomplete([task]) == {
        "qmsum": "3 queries, 3 documents, published 272 queries, 272 documents"
    }


def test_a_paper_of_qasper_without_a_text_is_left_out_with_its_query(tmp_path):
    documents, queries = small("qasper_title")
    documents[1]["passage"] = None
    write(tmp_path, "qasper_title", documents, queries)
    (task,) = loco.read(tmp_path, ["qasper_title"])
    assert task.corpus.ids == ["qasper_title_Passage_0", "qasper_title_Passage_2"]
    assert list(task.corpus.texts()) == ["text 0", "text 2"]
    assert task.queries.ids == ["qasper_title_Query_0", "qasper_title_Query_2"]


def test_all_twelve_tasks_are_asked_for_by_default(tmp_path):
    write(tmp_path, "qmsum", *small("qmsum"))
    with pytest.raises(NotFound) as error:
        loco.read(tmp_path)
    assert "queries/stackoverflow_test.jsonl" in str(error.value)
    assert "qmsum_test" not in str(error.value)
    assert len(loco.SIZES) == 12 and sum(d for _, d in loco.SIZES.values()) == 15075


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        (0, {"passage": None}, r"qmsum_test.jsonl:1: passage must be a string"),
        (1, {"query": 5}, r"qmsum_test.jsonl:1: query must be a string"),
        (1, {"answer_pids": []}, "answer_pids must be a list of ids, at least one"),
        (1, {"answer_pids": ["no"]}, "unknown document 'no'"),
        (1, {"qid": "qmsum_Query_2"}, r"qmsum_test.jsonl:3: the id 'qmsum_Query_2' was given"),
    ],
)
def test_malformed_lines_are_refused_by_file_and_line(tmp_path, side, change, message):
    both = small("qmsum")
    both[side][0].update(change)
    write(tmp_path, "qmsum", *both)
    with pytest.raises(UserError, match=message):
        loco.read(tmp_path, ["qmsum"])


def test_an_unknown_task_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"no task 'qsum' \(did you mean qmsum\?\)"):
        loco.read(tmp_path, ["qsum"])
