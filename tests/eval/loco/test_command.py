"""The command scores each query against its own task's documents, at a given length."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.loco import command
from eval.shared import results
from prompteol_jax.errors import UserError

TASKS = ("qmsum", "2wikimqa")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    words = "man woman dog cat guitar horse train beach bread song".split()
    for side in ("documents", "queries"):
        (tmp_path / side).mkdir()
    for name in TASKS:
        texts = [" ".join(rng.choice(words, 60)) for _ in range(6)]
        documents = [{"pid": f"p{n}", "passage": text} for n, text in enumerate(texts)]
        queries = [
            {"qid": f"q{n}", "query": text[:40], "answer_pids": [f"p{n}"]}
            for n, text in enumerate(texts)
        ]
        for side, rows in (("documents", documents), ("queries", queries)):
            lines = "".join(json.dumps({"dataset": name, **row}) + "\n" for row in rows)
            (tmp_path / side / f"{name}_test.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def options(folder, **more):
    return command.LocoOptions(
        **{"model": "tiny", "data": folder, "tasks": TASKS, "max_tokens": 60, **more}
    )


def test_tasks_are_scored_each_in_its_own_pool_and_cut_texts_are_counted(
    folder, tmp_path, capsys, caplog, coarse
):
    file = tmp_path / "loco.json"
    command.run(options(folder, json=file, truncate="middle", run=tmp_path / "run"))
    result = results.read(file)
    assert result["average"] == pytest.approx(np.mean(list(result["scores"].values())), abs=0.01)
    assert result["detail"]["qmsum"]["cut"] == {"queries": 0, "documents": 6}
    assert list(result["data"]["incomplete"]) == list(TASKS)
    assert "published 272 queries" in caplog.text
    assert "longer than 60 tokens: 0 of 12 queries and 12 of 12 documents" in " ".join(
        capsys.readouterr().out.split()
    )
    for name in TASKS:
        lines = (tmp_path / f"run-{name}").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 36


def test_a_length_must_be_given(folder):
    with pytest.raises(UserError, match="--max-tokens is missing; give the length to score at"):
        command.run(options(folder, max_tokens=None))
