"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, plain or gzipped.

Reading is strict: every problem is reported with its file and line, all of them in one error.
Source: beir/datasets/data_loader.py for the layout; a document's text is its title, a space and its
text, as beir/retrieval joins them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.retrieval import lines
from eval.retrieval.lines import Problems
from eval.retrieval.task import Documents, Retrieval, Texts
from prompteol_jax.errors import NotFound, UserError


def read(folder: Path, split: str = "test") -> Retrieval:
    """Read a folder; of the documents' texts only their lengths are held.

    Raises: NotFound without one of the three files, naming the splits that exist; UserError for
        malformed lines, ids given twice, and judgments of unknown queries or documents.
    """
    corpus_file, queries_file = _file(folder, "corpus.jsonl"), _file(folder, "queries.jsonl")
    qrels_file = _qrels_file(folder, split)
    problems = Problems()
    corpus = Documents.read(corpus_file, problems, "_id", partial(_text, titled=True))
    queries = _queries(queries_file, problems)
    qrels = _qrels(qrels_file, set(corpus.ids), set(queries.ids), problems)
    problems.refuse(folder)
    if not qrels:
        raise UserError(f"{qrels_file} judges no document; it needs at least one line")
    return Retrieval(
        folder.name, split, corpus, queries.only(qrels), qrels, len(queries) - len(qrels)
    )


def _file(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise NotFound(f"no folder {folder}; give a BEIR folder with corpus.jsonl")
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise NotFound(f"{folder} holds neither {name} nor {name}.gz; is it a BEIR folder?")


def _qrels_file(folder: Path, split: str) -> Path:
    for path in (folder / "qrels" / f"{split}.tsv", folder / "qrels" / f"{split}.tsv.gz"):
        if path.is_file():
            return path
    splits = sorted(path.name.split(".tsv")[0] for path in (folder / "qrels").glob("*.tsv*"))
    there = f"splits there: {', '.join(splits)}" if splits else "the folder qrels/ holds none"
    raise NotFound(f"{folder} has no judgments qrels/{split}.tsv; {there}")


def _queries(path: Path, problems: Problems) -> Texts:
    rows = dict(lines.unique(path, problems, "_id", partial(_text, titled=False)))
    return Texts(list(rows), list(rows.values()))


def _text(fields: Mapping[str, Any], *, titled: bool) -> str | Collection[str]:
    """Return the text of a line, or the names of the fields that are no strings."""
    given = {"title": "", **{key: value for key, value in fields.items() if value is not None}}
    wanted = ("text", "title") if titled else ("text",)
    wrong = [key for key in wanted if not isinstance(given.get(key), str)]
    if wrong:
        return wrong
    return f"{given['title']} {given['text']}".strip() if titled else given["text"]


def _qrels(
    path: Path, documents: set[str], queries: set[str], problems: Problems
) -> dict[str, dict[str, int]]:
    """Read judgments: a header, then query, document and a whole number, separated by tabs."""
    qrels: dict[str, dict[str, int]] = {}
    header = ["query-id", "corpus-id", "score"]
    for number, line in lines.numbered(path, problems):
        cells = line.rstrip("\r\n").split("\t")
        if number == 1:
            if cells != header:
                problems.add(path, number, f"the header must be {' '.join(header)} (tabs between)")
            continue
        if len(cells) != len(header):
            problems.add(path, number, f"{len(cells)} cells, expected 3 separated by tabs")
            continue
        query, document, score = cells
        unknown = [f"query {query!r:.80}"] * (query not in queries)
        unknown += [f"document {document!r:.80}"] * (document not in documents)
        if unknown:
            problems.add(path, number, f"unknown {' and '.join(unknown)}")
        elif not re.fullmatch(r"-?[0-9]{1,9}", score):
            problems.add(path, number, f"the score {score!r:.80} is not a whole number")
        elif document in qrels.setdefault(query, {}):
            problems.add(path, number, f"query {query!r} judges document {document!r} twice")
        else:
            qrels[query][document] = int(score)
    return qrels
