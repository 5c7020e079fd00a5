"""LoCoV1's layout: `documents/TASK_test.jsonl` and `queries/TASK_test.jsonl`, plain or gzipped.

A document is `{"dataset", "pid", "passage"}`, a query `{"dataset", "qid", "query", "answer_pids"}`.
On the hub both are called `documents/TASK_test.jsonl`, in a repository each, so the folders
`LoCoV1-Documents/documents/` and `LoCoV1-Queries/documents/` are found as well.

Source: Saad-Falcon et al. 2024, table 10 (sizes); HazyResearch/m2, bert/loco_eval.py (scoring) and
create_LoCo.py (in the tasks of qasper a paper without a text is left out, with its query).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from eval.retrieval import lines
from eval.retrieval.lines import Problems
from eval.retrieval.task import Documents, Retrieval, Texts
from prompteol_jax.errors import NotFound, UserError, nearest

SPLIT: Final = "test"
SIZES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(  # queries and documents
    {
        "summ_screen_fd": (338, 338),
        "gov_report": (972, 972),
        "qmsum": (272, 272),
        "qasper_title": (416, 416),
        "qasper_abstract": (416, 416),
        "multifieldqa": (30, 30),
        "2wikimqa": (60, 60),
        "passage_retrieval": (60, 60),
        "legal_case_reports": (770, 770),
        "courtlistener_HTML": (2000, 2000),
        "courtlistener_Plain_Text": (2000, 2000),
        "stackoverflow": (400, 7741),
    }
)
_WITH_GAPS: Final = ("qasper_title", "qasper_abstract")
# Folders of each side, the first that exists.
_FOLDERS: Final = {
    "documents": ("documents", "LoCoV1-Documents/documents"),
    "queries": ("queries", "LoCoV1-Queries/documents", "LoCoV1-Queries/queries"),
}


def read(folder: Path, names: Sequence[str] = ()) -> list[Retrieval]:
    """Read tasks, all twelve unless named.

    Raises: NotFound naming every missing file; UserError for unknown names, malformed lines, ids
        given twice and answers that are no document.
    """
    unknown = [f"{name!r}{nearest(name, SIZES)}" for name in names if name not in SIZES]
    if unknown:
        raise UserError(f"LoCoV1 has no task {'; '.join(unknown)}. Its tasks: {', '.join(SIZES)}")
    chosen = list(names or SIZES)
    files = {name: [_file(folder, side, name) for side in _FOLDERS] for name in chosen}
    missing = [
        f"{side}/{name}_{SPLIT}.jsonl"
        for name, found in files.items()
        for side, path in zip(_FOLDERS, found, strict=True)
        if path is None
    ]
    if missing:
        raise NotFound(
            f"{folder} lacks {', '.join(missing)}; give the folder with documents/ and queries/ of "
            "LoCoV1, or the tasks that are there: --tasks"
        )
    problems = Problems()
    tasks = [_task(name, files[name], problems) for name in chosen]
    problems.refuse(folder)
    return tasks


def incomplete(tasks: Sequence[Retrieval]) -> dict[str, str]:
    """Return by task how its sizes differ from the published ones, for those that differ."""
    found = {}
    for task in tasks:
        sizes = len(task.queries), len(task.corpus)
        if sizes != SIZES[task.name]:
            ours, published = (
                f"{q:,} queries, {d:,} documents" for q, d in (sizes, SIZES[task.name])
            )
            found[task.name] = f"{ours}, published {published}"
    return found


def _file(folder: Path, side: str, name: str) -> Path | None:
    for place in _FOLDERS[side]:
        for suffix in (".jsonl", ".jsonl.gz"):
            path = folder / place / f"{name}_{SPLIT}{suffix}"
            if path.is_file():
                return path
    return None


def _task(name: str, files: Sequence[Path | None], problems: Problems) -> Retrieval:
    documents, queries = files
    assert documents is not None and queries is not None  # missing ones were refused
    passage = partial(_passage, gaps=name in _WITH_GAPS)
    corpus = Documents.read(documents, problems, "pid", passage)
    known = set(corpus.ids)
    ids, texts, qrels = [], [], {}
    for number, fields in lines.objects(queries, problems, "qid"):
        if name in _WITH_GAPS and str(fields.get("qid")).replace("Query", "Passage") not in known:
            continue
        wrong = _wrong_query(fields, known)
        if not wrong and fields["qid"] in qrels:
            wrong = [f"the id {fields['qid']!r} was given already"]
        for what in wrong:
            problems.add(queries, number, what)
        if not wrong:
            ids.append(fields["qid"])
            texts.append(fields["query"])
            qrels[fields["qid"]] = dict.fromkeys(fields["answer_pids"], 1)
    return Retrieval(name, SPLIT, corpus, Texts(ids, texts), qrels)


def _wrong_query(fields: Mapping[str, Any], known: set[str]) -> list[str]:
    wrong = [
        f"{key} must be a string"
        for key in ("qid", "query")
        if not isinstance(fields.get(key), str)
    ]
    answers = fields.get("answer_pids")
    if not isinstance(answers, list) or not answers:
        return [*wrong, "answer_pids must be a list of ids, at least one"]
    unknown = [name for name in answers if not isinstance(name, str) or name not in known]
    return [*wrong, *(f"unknown document {name!r:.80}" for name in unknown)]


def _passage(fields: Mapping[str, Any], *, gaps: bool) -> str | Collection[str] | None:
    text = fields.get("passage")
    if text is None and gaps:
        return None
    return text if isinstance(text, str) else ["passage"]
