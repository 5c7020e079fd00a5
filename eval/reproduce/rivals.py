"""What was published for methods without training, as rows: averages from the shipped records.

A method's record holds the averages that sources report for it. Here are the scores by task that
some of them print, and methods that are not built, with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

from eval.reproduce.published import STS, TABLES, Row
from prompteol_jax.methods.library import find_method, shipped
from prompteol_jax.methods.record import Method, PublishedScore

_LLAMA_2: Final = "meta-llama/Llama-2-7b-hf"
_CELLS: Final[Mapping[tuple[str, str], str]] = {
    ("tp/eol", _LLAMA_2): "66.90 83.12 74.31 79.87 80.03 80.67 75.40",
    ("metaeol", _LLAMA_2): "64.16 81.61 73.09 81.11 78.94 77.96 74.86",
    ("eol", "meta-llama/Llama-3.1-8B"): "60.77 80.16 69.64 76.90 78.23 72.74 70.45",
    ("eol", "Qwen/Qwen2.5-7B"): "65.50 79.70 70.62 79.05 78.73 76.44 70.46",
    ("eol", "Qwen/Qwen3-8B"): "59.30 74.19 61.56 72.36 74.64 73.41 66.90",
}
_MTEB: Final = "published with MTEB's harness, whose numbers differ"
_TRANSLATIONS: Final = "it compares translations of every text, which are not built"
_DYSEM: Final = {
    _LLAMA_2: (78.64, 78.98),
    "meta-llama/Llama-3.1-8B": (77.11, 79.82),
    "Qwen/Qwen2.5-7B": (79.63, 78.52),
    "Qwen/Qwen3-8B": (79.65, 80.54),
}


@functools.cache
def rivals() -> tuple[Row, ...]:
    """Return a row for each STS average that a record reports, models together."""
    rows = [
        _row(method, score)
        for method in map(find_method, shipped())
        for score in method.published
        if score.sts is not None
    ]
    for model, averages in _DYSEM.items():
        for kind, average in zip(("english", "native"), averages, strict=True):
            source = "arXiv 2605.29751, from a picture"
            method = f"dysem/{kind}"
            rows.append(Row(model, {}, average, source, method=method, missing=_TRANSLATIONS))
    models = list(dict.fromkeys(row.model for row in rows))
    return tuple(sorted(rows, key=lambda row: models.index(row.model)))


def untrained_methods() -> list[str]:
    """Return the methods of the table that are built, each once, in its order."""
    return list(dict.fromkeys(row.method for row in rivals() if row.method and not row.missing))


def _row(method: Method, score: PublishedScore) -> Row:
    source = score.source or method.paper or "README of kongds/scaling_sentemb"
    note = _MTEB if score.harness == "mteb" else ""
    if method.unverified:
        note = "; ".join(filter(None, [note, f"unverified: {method.unverified}"]))
    return Row(
        score.model,
        _cells(method.name, score),
        score.sts,
        f"arXiv {source}" if source[:4].isdigit() else source,
        template=method.prompts[0].template.name,
        method=method.name,
        note=note,
    )


def _cells(method: str, score: PublishedScore) -> dict[str, float]:
    """Return the scores by task that belong to an average."""
    for table in ("sts-zero-shot", "sts-icl"):
        for row in TABLES[table]:
            same = (row.model, row.template, row.average) == (score.model, method, score.sts)
            if same and row.scores:
                return dict(row.scores)
    figures = _CELLS.get((method, score.model), "")
    return dict(zip(STS, map(float, figures.split()), strict=True)) if figures else {}
