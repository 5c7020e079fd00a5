"""From a task to a ranking: encode documents through shards, encode queries, and search."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.retrieval import metrics
from eval.retrieval.metrics import Hit
from eval.retrieval.options import RankingOptions, Sides
from eval.retrieval.task import Retrieval
from prompteol_jax import search
from prompteol_jax.cli.encode import encode_share
from prompteol_jax.distributed import Part
from prompteol_jax.errors import UserError
from prompteol_jax.progress import progress_bar
from prompteol_jax.search import Block, Found
from prompteol_jax.storage import shards
from prompteol_jax.text.template import clean_sentence


@dataclass(frozen=True)
class Ranking:
    """What was found for every query of a task.

    Attributes:
        hits: by query, the best document first.
        scores: by query, every metric.
        cut_queries, cut_documents: texts that were longer than a prompt may be; equal texts of a
            shard count once.
    """

    task: Retrieval
    hits: dict[str, list[Hit]]
    scores: dict[str, dict[str, float]]
    cut_queries: int = 0
    cut_documents: int = 0

    @property
    def means(self) -> dict[str, float]:
        """Mean of every metric over the queries."""
        return metrics.means(self.scores)

    def values(self, metric: str) -> np.ndarray:
        """Return one metric of every query, in the order of the queries."""
        return np.array([self.scores[query][metric] for query in self.task.queries.ids])


def cuts(k: int) -> tuple[int, ...]:
    """Return the ranks at which rankings of k documents are scored."""
    return tuple(n for n in metrics.CUTS if n <= k)


def rank(task: Retrieval, options: RankingOptions, sides: Sides) -> Ranking:
    """Encode a task's documents and queries, and rank the documents for every query."""
    texts = task.queries.texts
    texts = [clean_sentence(text) for text in texts] if options.clean else texts
    with _vectors(task, options, sides) as vectors:
        queries_qD = sides.queries.encode(texts)
        cut_queries = sides.queries.report.truncated
        best = metrics.id_order(task.corpus.ids)
        order_n = np.argsort(best)
        with progress_bar("search", len(order_n)) as advance:
            blocks = _blocks(vectors, order_n, advance)
            found = search.search(queries_qD, blocks, options.k + 1, sides.queries.mesh)
        cut_documents = sum(n or 0 for n in vectors.truncated)
    return ranking_of(task, found, best, options.k, cut_queries, cut_documents)


def ranking_of(task: Retrieval, found: Found, best: np.ndarray, k: int, *cut: int) -> Ranking:
    """Score what a search found.

    A document with the id of its query is no hit, as in BEIR (`ignore_identical_ids`).

    Args:
        best: index of the document of each rank that `found` names.
        cut: numbers of queries and documents that were cut.
    """
    ids, hits = task.corpus.ids, {}
    for query, order_k, score_k in zip(task.queries.ids, *found, strict=True):
        real = order_k >= 0
        names = [ids[n] for n in best[order_k[real]]]
        pairs = zip(names, score_k[real].tolist(), strict=True)
        hits[query] = [Hit(name, score) for name, score in pairs if name != query][:k]
    return Ranking(task, hits, metrics.evaluate(hits, task.qrels, cuts(k)), *cut)


def check_folders(tasks: list[Retrieval], folder: Path | None) -> None:
    """Refuse names of tasks that cannot be folders, or that two tasks have.

    Raises: UserError naming them.
    """
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"several tasks are called {', '.join(twice)}; give each folder once")
    odd = [name for name in names if folder and not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name)]
    if odd:
        raise UserError(f"a folder in --vectors cannot be called {', '.join(map(repr, odd))}")


@contextlib.contextmanager
def _vectors(task: Retrieval, options: RankingOptions, sides: Sides) -> Iterator[shards.Shards]:
    """Give the documents' vectors, encoded where they are missing."""
    texts = task.corpus.corpus
    with contextlib.ExitStack() as stack:
        if options.vectors is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "vectors"
        else:
            options.vectors.mkdir(parents=True, exist_ok=True)
            folder = options.vectors / task.name
        chunks = texts.survey(options.shard_rows)
        settings = options.work_on_documents()
        vectors = stack.enter_context(
            shards.opened(folder, settings, chunks, overwrite=options.overwrite)
        )
        vectors.begin(sides.documents.width)
        if vectors.missing:
            there = len(chunks) - len(vectors.missing)
            said = [f"{there} of {len(chunks)} shards were there"] if there else []
            said += encode_share(
                *(sides.documents, texts, vectors, Part()),
                clean=options.clean,
            )
            sys.stderr.write(f"{task.name}: {', '.join(said)}\n")
        yield vectors


def _blocks(
    vectors: shards.Shards, order_n: np.ndarray, advance: Callable[[int], None]
) -> Iterator[Block]:
    start = 0
    for number, chunk in enumerate(vectors.chunks):
        yield Block(vectors.read(number), order_n[start : start + chunk.rows])
        start += chunk.rows
        advance(chunk.rows)
