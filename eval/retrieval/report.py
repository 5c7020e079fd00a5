"""The table of the commands that rank documents, and their page: lengths, and the worst queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.retrieval.lexical import is_installed
from eval.retrieval.ranking import Ranking
from eval.shared import charts, results, terminal
from eval.shared import html as report

WORST: Final = 10  # queries of a task that the page shows
SHOWN: Final = 300  # characters of a text that the page shows
LENGTHS_NOTE: Final = (
    "Mean nDCG@10 of the queries in each fifth of the lengths, the bar its 95 % interval. "
    "A document counts with the mean length of the query's relevant documents."
)
SCORES_NOTE: Final = (
    "100 × the mean over the queries, with trec_eval's arithmetic. ± is half the width of the "
    "95 % interval of nDCG@10, from 1,000 bootstrap resamples of the queries."
)


def print_scores(result: Mapping[str, Any]) -> None:
    """Print the scores under a title that names everything that decided them."""
    columns, rows, last = table(result)
    terminal.print_table(results.title(result), columns, rows, last=last)
    terminal.print_line(cut_note(result))
    if result["bm25"]:
        terminal.print_line(result["bm25"]["settings"])
    elif not is_installed():
        terminal.print_line('BM25 is not scored: pip install ".[retrieval]"')


def table(
    result: Mapping[str, Any],
) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]:
    """Return columns, a row a task, and the row of means."""
    detail, bm25 = result["detail"], (result["bm25"] or {}).get("metrics")
    deepest = max(int(name[7:]) for name in _metrics(result) if name.startswith("recall@"))
    middle = min(100, deepest)
    shown = ("ndcg@10", f"map@{deepest}", f"recall@{middle}", "mrr")
    labels = ("nDCG@10", results.MARGIN, "MAP", f"R@{middle}", "MRR", *(["BM25"] if bm25 else []))

    def cells(name: str, values: Mapping[str, float], lexical: float | None) -> list[str]:
        numbers = [f"{100 * values[metric]:.2f}" for metric in shown]
        more = [] if lexical is None else [f"{100 * lexical:.2f}"]
        return [numbers[0], results.margin(result, name), *numbers[1:], *more]

    rows = [
        (
            *(name, f"{task['queries']:,}", f"{task['documents']:,}"),
            *cells(name, task["metrics"], bm25[name]["ndcg@10"] if bm25 else None),
        )
        for name, task in detail.items()
    ]
    means = {
        m: float(np.mean([task["metrics"][m] for task in detail.values()]))
        for m in _metrics(result)
    }
    lexical = float(np.mean([task["ndcg@10"] for task in bm25.values()])) if bm25 else None
    return (
        ("task", "queries", "docs", *labels),
        rows,
        ("average", "", "", *cells("average", means, lexical)),
    )


def _metrics(result: Mapping[str, Any]) -> Sequence[str]:
    return list(next(iter(result["detail"].values()))["metrics"])


def cut_note(result: Mapping[str, Any]) -> str:
    """Say how many texts were longer than a prompt may be."""
    detail, how = result["detail"].values(), result["options"]["truncate"]
    counts = [
        f"{sum(task['cut'][side] for task in detail):,} of "
        f"{sum(task[side] for task in detail):,} {side}"
        for side in ("queries", "documents")
    ]
    lost = "" if how == "error" else f", whose {how} was cut"
    return f"longer than {result['max_tokens']} tokens: {' and '.join(counts)}{lost}"


def write_report(path: Path, result: Mapping[str, Any], ranked: Sequence[Ranking]) -> None:
    """Write the page: scores, scores by length, and the worst queries with what was found."""
    columns, rows, last = table(result)
    note = report.paragraph(SCORES_NOTE) + report.paragraph(cut_note(result))
    if result["bm25"]:
        note += report.paragraph(f"BM25: its nDCG@10. {result['bm25']['settings']}.")
    sections = [("Scores", report.table(columns, rows, total=last) + note)]
    sections.append(("Scores by length", report.paragraph(LENGTHS_NOTE) + _lengths(ranked)))
    sections += [(f"{one.task.name}: worst queries", _worst(one)) for one in ranked]
    summary = {**results.facts(result), "average": f"{result['average']:.2f}"}
    report.write_page(path, results.page_title("Retrieval", result), summary, sections)


def _lengths(ranked: Sequence[Ranking]) -> str:
    """Draw scores against the lengths of queries and of relevant documents."""
    panels = []
    for one in ranked:
        task, score_n = one.task, 100 * one.values("ndcg@10")
        characters = dict(zip(task.corpus.ids, task.corpus.characters_n.tolist(), strict=True))
        of_queries = np.array([len(text) for text in task.queries.texts], float)
        relevant = [[characters[d] for d in task.relevant(q)] for q in task.queries.ids]
        has = np.array([bool(some) for some in relevant])
        of_documents = np.array([np.mean(some) for some in relevant if some])
        for what, length_n, values in (
            ("queries", of_queries, score_n),
            ("relevant documents", of_documents, score_n[has]),
        ):
            if len(values):
                drawing = charts.by_fifths(length_n, values, f"characters of {what}", "nDCG@10")
                panels.append(report.figure(drawing, f"{task.name}, {what}"))
    return report.grid(panels)


def _worst(one: Ranking) -> str:
    """List the queries with the lowest scores: a relevant document, and the first one found."""
    task, score_n = one.task, one.values("ndcg@10")
    worst = [task.queries.ids[n] for n in np.argsort(score_n, kind="stable")[:WORST]]
    relevant = {query: task.relevant(query)[:1] for query in worst}
    first = {query: [hit.document for hit in one.hits[query][:1]] for query in worst}
    wanted = {name for names in (*relevant.values(), *first.values()) for name in names}
    texts = task.corpus.chosen(wanted)
    asked = dict(zip(task.queries.ids, task.queries.texts, strict=True))
    rows = []
    for query in worst:
        at = {hit.document: n for n, hit in enumerate(one.hits[query], start=1)}
        rank = next((str(at.get(name, "–")) for name in relevant[query]), "–")
        shown = [_shortened(asked[query])]
        shown += [_shortened(texts[n[0]]) if n else "–" for n in (relevant[query], first[query])]
        rows.append((*shown, rank, f"{100 * one.scores[query]['ndcg@10']:.2f}"))
    return report.table(("query", "relevant", "found first", "rank of relevant", "nDCG@10"), rows)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
