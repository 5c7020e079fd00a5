"""The STS page: scores and published ones, similarities, and the pairs ranked worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from eval.reproduce import published_report
from eval.shared import charts, results
from eval.shared import html as report
from eval.sts.pairs import Task
from eval.sts.scores import Cosines, Encoder
from prompteol_jax.text import template
from prompteol_jax.verify import geometry


@runtime_checkable
class WordEncoder(Encoder, Protocol):
    """An encoder that also says the likeliest words for a text, or raises ValueError."""

    def words(self, text: str, k: int) -> Sequence[tuple[str, float]]: ...


COLUMNS: Final = ("task", "pairs", "Spearman", "mean", "weighted", "Pearson")
SHOWN_PAIRS: Final = 8  # at each end of the ranking
SHOWN_WORDS: Final = 3
SAMPLE: Final = 256  # sentences whose spread is measured
SCORES_NOTE: Final = (
    "<p>100 × correlation. Spearman and Pearson are over all subsets of a task joined; mean and "
    "weighted are Spearman averaged over its subsets, evenly and by their pairs.</p>"
)
SCATTER_NOTE: Final = "<p>The line joins the median cosines at each whole gold score.</p>"
RANK_NOTE: Final = (
    "<p>How far a pair's place by cosine lies from its place by gold, in percent of its task: "
    "negative where the model finds too little similarity. Behind each sentence stand the "
    "words that the model would say for it.</p>"
)


def write_report(
    path: Path,
    result: Mapping[str, Any],
    chosen: Sequence[Task],
    cosines: Cosines,
    encoder: WordEncoder,
) -> None:
    """Writes the page: scores and published ones, similarities, and the pairs ranked worst.

    The encoder is asked again for a few sentences: how they spread, and their words.
    """
    summary = {
        **results.facts(result),
        "pairs": f"{result['pairs']:,}",
        "time": f"{result['seconds']:.1f} s",
        "average": f"{result['average']:.2f}",
    }
    panels = [
        report.figure(
            charts.scatter(_gold(task), np.concatenate(cosines[task.name])),
            f"{task.name}: Spearman {result['scores'][task.name]:.2f}",
        )
        for task in chosen
    ]
    sections = [
        ("Scores", report.table(COLUMNS, score_rows(result)) + SCORES_NOTE),
        ("Beside published scores", published_report.beside(result, _table(result))),
        ("Gold similarity against cosine", SCATTER_NOTE + report.grid(panels)),
        ("Similarities", _similarities(chosen, cosines, encoder, result["clean"])),
        ("Pairs most out of rank", RANK_NOTE + _worst(chosen, cosines, encoder, result["clean"])),
        ("Subsets", _subset_table(result)),
    ]
    report.write_page(path, f"STS: {Path(result['model']).name}", summary, sections)


def _table(result: Mapping[str, Any]) -> str:
    """The table of the paper whose rows were run most like this one."""
    options = result["options"]
    if options.get("adapter"):
        return "sts-finetuned"
    if "icl" not in result["template"]:
        return "sts-zero-shot"
    return "quantization" if options.get("quantize") else "sts-icl"


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Formats the scores of each task to two decimals, in the order of `COLUMNS`."""
    return [
        (
            name,
            str(detail["pairs"]),
            f"{detail['spearman']['all']:.2f}",
            f"{detail['spearman']['mean']:.2f}",
            f"{detail['spearman']['wmean']:.2f}",
            f"{detail['pearson']['all']:.2f}",
        )
        for name, detail in result["detail"].items()
    ]


def _subset_table(result: Mapping[str, Any]) -> str:
    rows = [
        (
            task,
            name,
            subset["pairs"],
            subset["dropped"],
            f"{subset['spearman']:.2f}",
            f"{subset['pearson']:.2f}",
        )
        for task, detail in result["detail"].items()
        for name, subset in detail["subsets"].items()
    ]
    return report.table(("task", "subset", "pairs", "without gold", "Spearman", "Pearson"), rows)


def _similarities(
    chosen: Sequence[Task], cosines: Cosines, encoder: WordEncoder, clean: bool
) -> str:
    """Shows how cosines of like, unlike and random pairs are distributed, and the anisotropy."""
    texts = dict.fromkeys(
        text for task in chosen for pairs in task.subsets for text in pairs.texts_a
    )
    sample = list(texts)[:: max(1, len(texts) // SAMPLE)][:SAMPLE]
    found = geometry.spread(encoder.encode([_given(text, clean) for text in sample]))
    gold = np.concatenate([_gold(task) for task in chosen])
    values = np.concatenate([np.concatenate(cosines[task.name]) for task in chosen])
    groups = {
        "random pairs": found.cosines,
        "gold below 2": values[gold < 2],
        "gold from 4": values[gold >= 4],
    }
    drawing = charts.histograms({name: part for name, part in groups.items() if len(part)})
    rows = [
        ("mean cosine of random pairs (anisotropy)", f"{found.mean_cosine:.4f}"),
        ("pairs of different sentences with one vector", str(found.same)),
        ("dimensions used (participation ratio)", f"{found.dimensions:.1f}"),
        *(
            (f"mean cosine, {name}", f"{part.mean():.4f}")
            for name, part in groups.items()
            if len(part)
        ),
    ]
    caption = f"Cosines; random pairs are those of {len(sample)} sentences"
    return report.figure(drawing, caption) + report.table(("measure", "value"), rows)


def _worst(chosen: Sequence[Task], cosines: Cosines, encoder: WordEncoder, clean: bool) -> str:
    """Lists the pairs whose places in the ranking by cosine and by gold differ most."""
    from scipy import stats

    rows = []
    for task in chosen:
        values, gold = np.concatenate(cosines[task.name]), _gold(task)
        shift = 100 * (stats.rankdata(values) - stats.rankdata(gold)) / len(gold)
        texts_a = [text for pairs in task.subsets for text in pairs.texts_a]
        texts_b = [text for pairs in task.subsets for text in pairs.texts_b]
        rows += zip([task.name] * len(gold), gold, values, shift, texts_a, texts_b, strict=True)
    rows.sort(key=lambda row: row[3])
    shown = rows[:SHOWN_PAIRS] + rows[SHOWN_PAIRS:][-SHOWN_PAIRS:]
    return report.table(
        ("pair, with the words for it", "gold", "cosine", "places off, %", "task"),
        [
            (
                "\n".join(f"{t} → {_words(encoder, _given(t, clean))}" for t in (text_a, text_b)),
                f"{gold:.2f}",
                f"{value:.3f}",
                f"{shift:+.0f}",
                name,
            )
            for name, gold, value, shift, text_a, text_b in shown
        ],
    )


def _words(encoder: WordEncoder, text: str) -> str:
    """The words that the model would say for a text; none where no head reads the vectors."""
    try:
        return ", ".join(word.strip() for word, _ in encoder.words(text, SHOWN_WORDS))
    except ValueError:  # an inner layer, or a mean
        return "–"


def _given(text: str, clean: bool) -> str:
    return template.clean_sentence(text) if clean else text


def _gold(task: Task) -> Float64[np.ndarray, " n"]:
    return np.concatenate([pairs.gold for pairs in task.subsets])
