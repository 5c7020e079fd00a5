"""BEIR folders: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, plain or gzipped.

Reading is strict: every problem is reported with its file and line, all of them in one error.
Source: beir/datasets/data_loader.py for the layout; a document's text is its title, a space and its
text, as beir/retrieval joins them.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from eval.retrieval.metrics import Qrels
from prompteol_jax.errors import NotFound, UserError

SHOWN: Final = 20
LINE_BYTES: Final = 2**26  # of one document, at most


@dataclass(frozen=True)
class Texts:
    """Texts with ids, in the order of their file."""

    ids: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Retrieval:
    """A retrieval task: documents, the judged queries, and their judgments.

    Attributes:
        unjudged: queries of the file without a judgment in this split; they are left out.
    """

    name: str
    split: str
    corpus: Texts
    queries: Texts
    qrels: Qrels
    unjudged: int


@dataclass
class _Problems:
    """What is wrong in the files of a folder."""

    found: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, what: str) -> None:
        self.found.append(f"{path}:{line}: {what}")

    def refuse(self, folder: Path) -> None:
        if not self.found:
            return
        shown = self.found[:SHOWN]
        rest = len(self.found) - len(shown)
        shown += [f"and {rest} more"] if rest else []
        raise UserError(f"{len(self.found)} problems in {folder}:\n  " + "\n  ".join(shown))


def read(folder: Path, split: str = "test") -> Retrieval:
    """Read a folder.

    Raises: NotFound without one of the three files, naming the splits that exist; UserError for
        malformed lines, ids given twice, and judgments of unknown queries or documents.
    """
    corpus_file, queries_file = _file(folder, "corpus.jsonl"), _file(folder, "queries.jsonl")
    qrels_file = _qrels_file(folder, split)
    problems = _Problems()
    corpus = _texts(corpus_file, problems, titled=True)
    queries = _texts(queries_file, problems, titled=False)
    qrels = _qrels(qrels_file, set(corpus.ids), set(queries.ids), problems)
    problems.refuse(folder)
    if not qrels:
        raise UserError(f"{qrels_file} judges no document; it needs at least one line")
    judged = [n for n, query in enumerate(queries.ids) if query in qrels]
    kept = Texts([queries.ids[n] for n in judged], [queries.texts[n] for n in judged])
    return Retrieval(folder.name, split, corpus, kept, qrels, len(queries) - len(kept))


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


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path, problems: _Problems) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file that are not blank, decoded."""
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(LINE_BYTES + 1):
                number += 1
                if len(raw) > LINE_BYTES:
                    problems.add(path, number, f"longer than {LINE_BYTES} bytes")
                    return
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    problems.add(path, number, f"not UTF-8 ({error.reason})")
                    continue
                if text.strip():
                    yield number, text
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        if path.suffix != ".gz":
            raise
        problems.add(path, number + 1, f"the gzip file is damaged ({error})")


def _texts(path: Path, problems: _Problems, *, titled: bool) -> Texts:
    """Read a jsonl file of texts with ids."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path, problems):
        fields = _object(path, number, line, problems)
        if fields is None:
            continue
        wanted = ("_id", "text", "title") if titled else ("_id", "text")
        given = {"title": "", **{key: value for key, value in fields.items() if value is not None}}
        wrong = [key for key in wanted if not isinstance(given.get(key), str)]
        if wrong:
            problems.add(path, number, f"{' and '.join(wrong)} must be a string")
            continue
        name, text = str(given["_id"]), str(given["text"])
        if name in found:
            problems.add(path, number, f"the id {name!r} was given on line {lines[name]} already")
            continue
        found[name] = f"{given['title']} {text}".strip() if titled else text
        lines[name] = number
    return Texts(list(found), list(found.values()))


def _object(path: Path, number: int, line: str, problems: _Problems) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        problems.add(path, number, f"not JSON ({str(error)[:80]})")
        return None
    if not isinstance(fields, dict):
        problems.add(path, number, f"a JSON {type(fields).__name__}, not an object with _id, text")
        return None
    return fields


def _qrels(
    path: Path, documents: set[str], queries: set[str], problems: _Problems
) -> dict[str, dict[str, int]]:
    """Read judgments: a header, then query, document and a whole number, separated by tabs."""
    qrels: dict[str, dict[str, int]] = {}
    header = ["query-id", "corpus-id", "score"]
    for number, line in _lines(path, problems):
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
