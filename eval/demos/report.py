"""The outcome of a search, its table, and its page with the distribution of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from eval.demos.search import Scored
from eval.shared import bootstrap, charts, results, terminal
from eval.shared import html as report
from prompteol_jax.text.template import Template

COLUMNS: Final = ("rank", "Spearman", "gain", "demonstrations", "candidate", "pairs")
TEXTS: Final = ("candidate", "demonstrations")
SHOWN: Final = 20  # first rows of the table of the page
PRINTED: Final = 10
NOTE: Final = (
    "The interval of the gain is from a paired bootstrap of the pairs. The best of many candidates "
    "was chosen on these pairs, so it gains less on others."
)


def best_of(bare: Scored, ranking: Sequence[Scored]) -> Scored:
    """Return the best candidate, or the bare template where no candidate is better."""
    return ranking[0] if ranking[0].score > bare.score else bare


def outcome(bare: Scored, ranking: Sequence[Scored]) -> dict[str, Any]:
    """Return the scores of a search; the rank of the bare template is 0."""
    best = best_of(bare, ranking)
    zero, first = ({"dev": it.examples} for it in (bare, best))
    gain = bootstrap.compare(zero, first, resamples=bootstrap.RESAMPLES)["dev"]
    return {
        "zero_shot": round(bare.score, 2),
        "zero_shot_interval": bootstrap.intervals(zero).get("dev"),
        "best": entry(0 if best is bare else 1, best),
        "best_interval": bootstrap.intervals(first).get("dev"),
        "gain_interval": [round(gain.low, 2), round(gain.high, 2)],
        "better_than_zero_shot": sum(s.score > bare.score for s in ranking if s.shots == 1),
        "pairs": bare.pairs,
        "ranking": [entry(rank, scored) for rank, scored in enumerate(ranking, start=1)],
    }


def entry(rank: int, scored: Scored) -> dict[str, Any]:
    """Return a line of the ranking."""
    return {
        "rank": rank,
        "name": scored.template.name,
        "score": round(scored.score, 4),
        "pairs": scored.pairs,
        "shots": scored.shots,
        "demonstrations": [d._asdict() for d in scored.template.demonstrations],
    }


def print_table(result: Mapping[str, Any]) -> None:
    """Print the best candidates, and how they compare with the template as it is."""
    shown = rows(result)[:PRINTED]
    terminal.print_table(results.title(result), COLUMNS, shown, left=TEXTS)
    terminal.print_line(verdict(result))


def verdict(result: Mapping[str, Any]) -> str:
    """Return what the search found, in a sentence."""
    better, total = result["better_than_zero_shot"], result["candidates"]
    gain, (low, high) = result["best"]["score"] - result["zero_shot"], result["gain_interval"]
    found = f"the best gains {gain:+.2f} ({low:+.2f} to {high:+.2f})"
    if result["best"]["rank"] == 0:
        found = "none is better than the template as is"
    return (
        f"As it is, the template scores {result['zero_shot']:.2f}; {better} of {total} candidates "
        f"score more on the pairs they were scored on, {found}."
    )


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Format the ranking in the order of `COLUMNS`."""
    return [
        (
            str(line["rank"]),
            f"{line['score']:.2f}",
            f"{line['score'] - result['zero_shot']:+.2f}",
            "  ".join(f"{d['text']} → {d['word']}" for d in line["demonstrations"]),
            line["name"],
            str(line["pairs"]),
        )
        for line in result["ranking"]
    ]


def write_report(path: Path, result: Mapping[str, Any], best: Template) -> None:
    """Write the page: the distribution against the template as it is, and the ranking."""
    drawing = charts.counts(
        [line["score"] for line in result["ranking"]],
        {"template as it is": result["zero_shot"], "best": result["best"]["score"]},
        xlabel="100 × Spearman",
        ylabel="candidates",
    )
    ranked = rows(result)
    sections = [
        (
            "Distribution",
            report.figure(drawing, "Scores of all candidates")
            + report.paragraph(verdict(result))
            + report.paragraph(NOTE),
        ),
        ("The best template", report.table(("prompt",), [(best.fill("…"),)])),
        ("Best candidates", report.table(COLUMNS, ranked[:SHOWN])),
    ]
    if len(ranked) > SHOWN:
        sections.append(("Worst candidates", report.table(COLUMNS, ranked[SHOWN:][-SHOWN // 2 :])))
    report.write_page(path, results.page_title("Demonstrations", result), _facts(result), sections)


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        **results.facts(result),
        "candidates": f"{result['candidates']:,}",
        "pairs": " → ".join(f"{stage:,}" for stage in result["stages"]),
        "as it is": f"{result['zero_shot']:.2f}",
        "best": f"{result['best']['score']:.2f}",
    }
    if result["resumed"]:
        facts["time"] += f", without {result['resumed']:,} scores of an earlier run"
    if result["operations"]:
        share = result["operations"]["share"]
        facts["cost"] = f"{share:.2f} of the operations of each candidate alone"
    return facts
