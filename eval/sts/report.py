"""The table of eval.sts, and its page: scores, similarities, and the pairs ranked worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from eval.reproduce import report as reproduce_report
from eval.shared import charts, results, terminal
from eval.shared import html as report
from eval.sts.pairs import Task
from eval.sts.scores import Cosines, Encoder
from prompteol_jax.text import template
from prompteol_jax.verify import geometry


@runtime_checkable
class WordEncoder(Encoder, Protocol):
    """An encoder that also gives the likeliest words for a text, or raises ValueError."""

    def words(self, text: str, k: int) -> Sequence[tuple[str, float]]: ...


COLUMNS: Final = ("task", "pairs", "Spearman", results.MARGIN, "mean", "weighted", "Pearson")
SHOWN_PAIRS: Final = 8  # at each end of the ranking
SHOWN_WORDS: Final = 3
SAMPLE: Final = 256  # sentences whose spread is measured
SCORES_NOTE: Final = (
    "100 × correlation. Spearman and Pearson are over all subsets of a task joined; mean and "
    "weighted are Spearman averaged over its subsets, evenly and by their pairs. ± is half the "
    "width of Spearman's 95 % interval, from 1,000 bootstrap resamples of the pairs."
)
SCATTER_NOTE: Final = "The line joins the median cosines at each whole gold score."
RANK_NOTE: Final = (
    "How far a pair's rank by cosine is from its rank by gold, in percent of its task: negative "
    "where the model finds too little similarity. The words after each sentence are those that the "
    "model would say for it. The worst pairs of either kind come first."
)


def print_scores(result: Mapping[str, Any]) -> None:
    """Print the scores under a title that names everything that decided them."""
    terminal.print_table(
        results.title(result), COLUMNS, score_rows(result), last=average_row(result)
    )


def write_report(
    path: Path,
    result: Mapping[str, Any],
    chosen: Sequence[Task],
    cosines: Cosines,
    encoder: WordEncoder,
) -> None:
    """Write the page: scores and published ones, similarities, and the pairs ranked worst.

    The encoder is asked again for a few sentences: how they spread, and their words.
    """
    summary = {
        **results.facts(result),
        "pairs": f"{result['pairs']:,}",
        "average": f"{result['average']:.2f}",
    }
    panels = [
        report.figure(
            charts.scatter(task.gold, np.concatenate(cosines[task.name])),
            f"{task.name}: Spearman {result['scores'][task.name]:.2f}",
        )
        for task in chosen
    ]
    scores = report.table(COLUMNS, score_rows(result), total=average_row(result))
    clean = result["clean"]
    sections = [
        ("Scores", scores + report.paragraph(SCORES_NOTE)),
        ("Published scores", reproduce_report.beside(result)),
        (
            "Gold similarity against cosine",
            report.paragraph(SCATTER_NOTE) + report.grid(panels),
        ),
        ("Similarities", _similarities(chosen, cosines, encoder, clean)),
        (
            "Pairs most out of rank",
            report.paragraph(RANK_NOTE) + _worst(chosen, cosines, encoder, clean),
        ),
        ("Subsets", _subset_table(result)),
    ]
    report.write_page(path, results.page_title("STS", result), summary, sections)


def score_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the scores of each task to two decimals, in the order of `COLUMNS`."""
    return [
        (
            name,
            str(detail["pairs"]),
            f"{detail['spearman']['all']:.2f}",
            results.margin(result, name),
            f"{detail['spearman']['mean']:.2f}",
            f"{detail['spearman']['wmean']:.2f}",
            f"{detail['pearson']['all']:.2f}",
        )
        for name, detail in result["detail"].items()
    ]


def average_row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Format the average over tasks, in the order of `COLUMNS`."""
    scores = f"{result['average']:.2f}", results.margin(result, "average")
    return ("average", str(result["pairs"]), *scores, "", "", "")


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
    """Show how cosines of like, unlike and random pairs are distributed, and the anisotropy."""
    texts = dict.fromkeys(
        text for task in chosen for pairs in task.subsets for text in pairs.texts_a
    )
    sample = list(texts)[:: max(1, len(texts) // SAMPLE)][:SAMPLE]
    found = geometry.spread(encoder.encode([_given(text, clean) for text in sample]))
    gold = np.concatenate([task.gold for task in chosen])
    values = np.concatenate([np.concatenate(cosines[task.name]) for task in chosen])
    groups = {
        "random pairs": found.cosines,
        "gold below 2": values[gold < 2],
        "gold from 4": values[gold >= 4],
    }
    drawing = charts.densities({name: part for name, part in groups.items() if len(part)})
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
    """List the pairs whose ranks by cosine and by gold differ most, the worst of each end first."""
    from scipy import stats

    rows = []
    for task in chosen:
        values = np.concatenate(cosines[task.name])
        shift = 100 * (stats.rankdata(values) - stats.rankdata(task.gold)) / len(task)
        texts_a = [text for pairs in task.subsets for text in pairs.texts_a]
        texts_b = [text for pairs in task.subsets for text in pairs.texts_b]
        names = [task.name] * len(task)
        rows += zip(names, task.gold, values, shift, texts_a, texts_b, strict=True)
    rows.sort(key=lambda row: row[3])
    shown = rows[:SHOWN_PAIRS] + rows[SHOWN_PAIRS:][-SHOWN_PAIRS:][::-1]
    return report.table(
        ("pair, with the words for it", "gold", "cosine", "ranks off, %", "task"),
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
    """Return the words that the model would say for a text; a dash where no head reads vectors."""
    try:
        return ", ".join(word.strip() for word, _ in encoder.words(text, SHOWN_WORDS))
    except ValueError:  # an inner layer, or a mean
        return "–"


def _given(text: str, clean: bool) -> str:
    return template.clean_sentence(text) if clean else text
