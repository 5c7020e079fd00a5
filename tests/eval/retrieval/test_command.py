"""The command from BEIR folders to table, JSON, page and run file, with real models."""

from __future__ import annotations

import json

import beir_sets
import numpy as np
import oracle
import pytest

from eval.compare import command as compare
from eval.retrieval import command, lexical
from eval.shared import results
from prompteol_jax import Embedder
from prompteol_jax.errors import UserError

pytrec_eval = pytest.importorskip("pytrec_eval")
CUTS = (1, 3, 5, 10, 100, 1000)
THEIRS = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}


def options(folder, **more):
    return command.RetrievalOptions(model="tiny", data=(folder,), **more)


def judgments(folder):
    lines = (folder / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    qrels = {}
    for query, document, score in (line.split("\t") for line in lines):
        qrels.setdefault(query, {})[document] = int(score)
    return qrels


def read_run(path):
    run = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, document, _, score, _ = line.split(" ")
        run.setdefault(query, {})[document] = float(score)
    return run


def trec_evals(run, qrels):
    """What trec_eval says of a run, by query and our names."""
    asked = {f"{name}.{','.join(map(str, CUTS))}" for name in THEIRS.values()} | {"recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    return {
        query: {
            **{f"{o}@{k}": values[f"{t}_{k}"] for o, t in THEIRS.items() for k in CUTS},
            "mrr": values["recip_rank"],
        }
        for query, values in found.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return beir_sets.made(tmp_path_factory.mktemp("beir") / "made")


def test_every_metric_of_a_made_folder_is_trec_evals(folder, tmp_path, capsys, coarse):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "report", "run")}
    command.run(options(folder, shard_rows=7, **files))
    result, theirs = (
        results.read(files["json"]),
        trec_evals(read_run(files["run"]), judgments(folder)),
    )
    ours = result["per_query"]["made"]
    assert set(theirs) == set(ours["id"]) and len(theirs) == 11
    for name in result["detail"]["made"]["metrics"]:
        expected = [theirs[query][name] for query in ours["id"]]
        np.testing.assert_allclose(ours[name], expected, atol=1e-9, err_msg=name)
    mean = 100 * np.mean([scores["ndcg@10"] for scores in theirs.values()])
    assert result["scores"]["made"] == result["average"] == pytest.approx(mean, abs=0.005)
    assert result["detail"]["made"]["unjudged_queries"] == 1
    assert "q1" not in read_run(files["run"])["q1"]  # the document with the query's id is no hit
    assert result["bm25"]["metrics"]["made"]["ndcg@10"] > 0
    page = files["report"].read_text(encoding="utf-8")
    assert "worst queries" in page and "<svg" in page
    assert "BM25" in capsys.readouterr().out


def test_a_run_is_continued_and_other_settings_are_refused(folder, tmp_path, capsys, coarse):
    kept = tmp_path / "vectors"

    def run(**more):
        result = command.run(options(folder, vectors=kept, no_lexical=True, shard_rows=9, **more))
        return result["per_query"]["made"]["ndcg@10"], capsys.readouterr().err

    first, said = run()
    assert "49 encoded" in said
    (kept / "made" / "shard-00002.npy").unlink()
    again, said = run()
    assert "5 of 6 shards were there" in said and "9 encoded" in said
    np.testing.assert_array_equal(again, first)
    _, said = run(query_template="none")  # queries may change
    assert "encoded" not in said
    with pytest.raises(UserError, match="template was eol and is now none|prompt was"):
        run(document_template="none")


@pytest.mark.first("templates", "one-method")
@pytest.mark.parametrize(
    ("sides", "queries_with", "documents_with", "name"),
    [
        (
            {"query_template": "none", "document_template": "eol"},
            {"template": "none"},
            {"template": "eol"},
            None,
        ),
        (
            {"query_method": "attention-sum", "document_method": "reverse-eol"},
            {"method": "attention-sum"},
            {"method": "reverse-eol"},
            "attention-sum, documents reverse-eol",
        ),
        ({"query_method": "cot"}, {"method": "cot"}, {"template": "eol"}, "cot, documents none"),
        ({"method": "cot"}, {"method": "cot"}, {"method": "cot"}, "cot"),
    ],
    ids=["templates", "methods", "one-method", "method-of-both"],
)
def test_each_side_has_its_prompt_and_blocks_change_nothing(
    sides, queries_with, documents_with, name, folder, tmp_path, coarse
):
    file = tmp_path / "run"
    given = dict(k=10, run=file, no_lexical=True, json=tmp_path / "out.json", **sides)
    command.run(options(folder, shard_rows=8, **given))
    result = results.read(tmp_path / "out.json")
    assert result.get("method") == name
    found = [side.get("method", {}).get("name") for side in result["methods"].values()]
    assert found == [with_.get("method") for with_ in (queries_with, documents_with)]
    corpus, queries = (
        [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]
        for kind in ("corpus", "queries")
    )
    asking, documents = (
        Embedder.from_pretrained("tiny", dtype="float32", **how)
        for how in (queries_with, documents_with)
    )
    texts = [f"{row['title']} {row['text']}".strip() for row in corpus]
    asked = [row for row in queries if row["_id"] in judgments(folder)]
    z_qD = asking.encode([row["text"] for row in asked])
    cosines = documents.similarity(z_qD, documents.encode(texts))
    run = read_run(file)
    for row, cosine_n in zip(asked, cosines, strict=True):
        pairs = zip(cosine_n, (d["_id"] for d in corpus), strict=True)
        best = sorted((p for p in pairs if p[1] != row["_id"]), reverse=True)[:10]
        assert list(run[row["_id"]]) == [name for _, name in best]


def test_two_results_are_compared_query_by_query(folder, tmp_path, capsys, coarse):
    files = [tmp_path / f"{name}.json" for name in ("eol", "none")]
    for file in files:
        command.run(options(folder, template=file.stem, json=file, no_lexical=True))
    found = compare.run(compare.CompareOptions(files=tuple(files), resamples=200))
    scores = [results.read(file)["scores"]["made"] for file in files]
    task = found["tasks"]["made"]
    assert (task["a"], task["b"]) == pytest.approx(scores, abs=0.005)
    assert task["low"] <= task["difference"] <= task["high"]
    assert found["measure"] == "100 x nDCG@10"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data=()), "--data names no folder"),
        (dict(k=9), "--k 9 must be at least 10"),
        (dict(split="dev"), "splits there: test"),
        (dict(query_template="no-such"), "no-such"),
        (dict(query_method="metaeo"), r"unknown method 'metaeo' \(did you mean metaeol"),
        (dict(document_method="ck", document_template="eol"), "drop --document-template"),
        (dict(method="ck", query_template="eol"), "no effect with --method: give --query-method"),
        (
            dict(query_method="ck", document_method="eol", pooling="mean"),
            "--pooling has no effect: both sides have a method",
        ),
        (dict(document_method="embed-filter/eol"), "queries have 128 features and documents"),
    ],
)
def test_what_cannot_be_run_is_one_error(folder, change, message):
    with pytest.raises(UserError, match=message):
        command.run(command.RetrievalOptions(**{"model": "tiny", "data": (folder,), **change}))


def test_ids_with_white_space_cannot_be_in_a_run_file(tmp_path):
    folder = beir_sets.write(
        tmp_path / "odd",
        [{"_id": "d 1", "text": "x"}],
        [{"_id": "q", "text": "x"}],
        [("q", "d 1", 1)],
    )
    with pytest.raises(UserError, match="odd: 1 ids such as 'd 1' hold white space"):
        command.run(options(folder, run=tmp_path / "run"))


def test_bm25_ranks_documents_that_share_a_word_and_no_others(tmp_path):
    from eval.retrieval import beir

    texts = ["a guitar", "the guitar and a guitar", "a dog", "", "two dogs"]
    folder = beir_sets.write(
        tmp_path / "words",
        [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)],
        [
            {"_id": "q1", "text": "guitar"},
            {"_id": "q2", "text": "zebra"},
            {"_id": "q3", "text": ""},
        ],
        [("q1", "d1", 1), ("q2", "d2", 1), ("q3", "d3", 1)],
    )
    found = lexical.rank(beir.read(folder), 10)
    assert {hit.document for hit in found.hits["q1"]} == {"d0", "d1"}
    assert found.hits["q2"] == found.hits["q3"] == []
    assert found.scores["q2"]["mrr"] == 0


def transformers_vectors(folder, texts):
    """The last token's final state for each text, by transformers in float32, one at a time."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, body = AutoTokenizer.from_pretrained(folder), oracle.load(folder).model
    found = {}
    for text in dict.fromkeys(texts):
        ids = tokenizer(oracle.EOL.format(text), return_tensors="pt").input_ids
        with torch.no_grad():
            found[text] = body(input_ids=ids).last_hidden_state[0, -1].double().numpy()
    return np.stack([found[text] for text in texts])


@pytest.mark.slow
@pytest.mark.parametrize("make", [beir_sets.sts_benchmark, beir_sets.nli], ids=["sts-b", "nli"])
def test_real_sets_score_what_numpy_makes_of_transformers_vectors(make, data, tmp_path):
    folder = make(data, tmp_path / "set")
    model, file = data / "weights/tinystories-656k", tmp_path / "out.json"
    command.run(
        command.RetrievalOptions(model=str(model), data=(folder,), json=file, no_lexical=True)
    )
    ours = results.read(file)["per_query"]["set"]
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "queries")
    }
    sides = [
        transformers_vectors(model, [row["text"].strip() for row in rows[name]])
        for name in ("queries", "corpus")
    ]
    queries, documents = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in sides)
    cosines, ids = queries @ documents.T, [row["_id"] for row in rows["corpus"]]
    run = {
        row["_id"]: {ids[n]: float(np.float32(cosine_n[n])) for n in np.argsort(-cosine_n)[:1000]}
        for row, cosine_n in zip(rows["queries"], cosines, strict=True)
    }
    theirs = trec_evals(run, judgments(folder))
    for name in (name for name in ours if name != "id"):
        expected = [theirs[query][name] for query in ours["id"]]
        assert np.mean(ours[name]) == pytest.approx(np.mean(expected), abs=1e-6), name
