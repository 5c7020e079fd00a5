"""Finds the demonstration that serves a model best, as the paper did, and makes candidates.

    python -m eval.demos build --model M --data SentEval/data/downstream --output candidates.jsonl
    python -m eval.demos search --model M --data SentEval/data/downstream \\
        --candidates candidates.jsonl --output runs/demos

Every candidate is scored on STS-B dev. The folder gets a journal, from which the same command goes
on after a kill, and `template.json`, the best template, which every command takes as --template.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval.demos import build as demos_build
from eval.demos import candidates as demos_candidates
from eval.demos import cost as demos_cost
from eval.demos import report as demos_report
from eval.demos.build import BuildOptions
from eval.demos.encode import SharedEncoder
from eval.demos.journal import Journal
from eval.demos.search import Search, Standing
from eval.shared import results
from eval.sts.pairs import Pairs
from eval.sts.tasks import read_tasks
from prompteol_jax import Embedder
from prompteol_jax.cli.commands import run_one_of
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths
from prompteol_jax.text.template import Template, read_template

JOURNAL: Final = "journal.jsonl"
TEMPLATE: Final = "template.json"
# What changes the rounding of a score alone, and the template, whose content names a candidate.
_FREE: Final = {"mesh", "batch_tokens", "plan", "template"}


@dataclass(frozen=True, kw_only=True)
class SearchOptions(ModelOptions):
    """Ranks demonstrations by 100 x Spearman on STS-B dev and writes the best template.

    Repeat a command that was interrupted and it goes on where it stopped.
    """

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    candidates: Path
    """.jsonl or .csv with text and word, put into --template; or .txt, the original's notation."""
    output: Path
    """Folder for the journal and the best template."""
    halving: bool = False
    """Score all on an eighth of the pairs, the better half on a quarter, and so on."""
    shots: int = 1
    """Demonstrations to end with: each further one is tried behind the best so far."""
    pool: int = 50
    """How many of the best single candidates are tried as a further demonstration."""
    raw: bool = False
    """Encode sentences as they are, without the original's punctuation rules."""
    json: Path | None = None
    """File for the ranking."""
    report: Path | None = None
    """File for a page of HTML with the ranking and the distribution of scores."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    description = "Demonstrations: a search for the best one, and sets of candidates."
    run_one_of("python -m eval.demos", description, COMMANDS, argv)


def search(options: SearchOptions) -> dict[str, Any]:
    """Ranks the candidates, prints the best, writes the files and returns the result."""
    _check(options)
    base = read_template(options.template)
    candidates = demos_candidates.read_candidates(options.candidates, base)
    ((pairs,),) = (task.subsets for task in read_tasks(options.data, split="dev"))
    paths.refuse_buckets(options.output)
    results.prepare(options.json, options.report, options.output / JOURNAL)
    journal = Journal(options.output / JOURNAL, _settings(options, pairs))
    embedder = options.load("float32")
    journal.agree(_weights(embedder))
    start = time.perf_counter()
    encoder = SharedEncoder(embedder, options.batch_tokens)
    found = Search(encoder, pairs, journal, halving=options.halving, clean=not options.raw)
    zero = found.base(base)
    ranking = _rank(found, candidates, options, len(base.demonstrations))
    seconds = time.perf_counter() - start
    best = ranking[0]
    results.write(options.output / TEMPLATE, best.template.to_json())
    result = {
        **results.header(embedder),
        "zero_shot": round(zero.score, 2),
        "best": demos_report.entry(1, best),
        "candidates": len(candidates),
        "better_than_zero_shot": sum(s.score > zero.score for s in ranking if s.shots == 1),
        "stages": list(found.stages),
        "resumed": journal.resumed,
        "clean": not options.raw,
        "pairs": len(pairs),
        "seconds": round(seconds, 3),
        "operations": _operations(encoder, ranking, found),
        "ranking": [demos_report.entry(rank, s) for rank, s in enumerate(ranking, start=1)],
        **results.record(embedder, options),
    }
    demos_report.print_table(result)
    sys.stderr.write(f"{options.output / TEMPLATE}: the best template\n")
    if options.json:
        results.write(options.json, result)
    if options.report:
        demos_report.write_report(options.report, result, best.template)
    return result


def _rank(
    found: Search, candidates: Sequence[Template], options: SearchOptions, common: int
) -> list[Standing]:
    """All candidates of all shots, best first; those scored on fewer pairs come last."""
    ranked = found.run(candidates)
    single = [s for s in ranked if s.pairs == ranked[0].pairs] or ranked
    everything, best = list(ranked), ranked[0]
    for shots in range(2, options.shots + 1):
        grown = found.extend(best.template, single[: options.pool], shots, common)
        if not grown:
            break
        everything += grown
        best = grown[0]
    return sorted(everything, key=lambda s: (-s.pairs, -s.score))


def _operations(
    encoder: SharedEncoder, ranking: Sequence[Standing], found: Search
) -> dict[str, Any] | None:
    """What was computed, and what each template alone would cost; None where some were known."""
    if found.journal.resumed:
        return None
    texts = found.texts()
    ours = demos_cost.of_search(encoder)
    alone = demos_cost.of_each_alone(encoder, [s.template for s in ranking], texts)
    return {
        "search": ours,
        "each_alone": alone,
        "share": round(ours / alone, 4),
        "not_counted": encoder.singly - len(texts),  # encodings, without those of the bare template
    }


def _check(options: SearchOptions) -> None:
    problems = []
    if options.shots < 1 or options.pool < 1:
        problems.append(f"--shots {options.shots}, --pool {options.pool}: both take 1 or more")
    if options.pooling != "last":
        problems.append("demonstrations are compared at the last token: no --pooling mean")
    if options.output.exists() and not options.output.is_dir():
        problems.append(f"--output {options.output} is a file; give a folder")
    if problems:
        raise UserError("; ".join(problems))


def _settings(options: SearchOptions, pairs: Pairs) -> dict[str, Any]:
    """Whatever decides a score and is known before the model is loaded."""
    content = repr((list(pairs.texts_a), list(pairs.texts_b), pairs.gold.tolist()))
    names = {field.name for field in dataclasses.fields(ModelOptions)} - _FREE
    return {
        **{name: getattr(options, name) for name in sorted(names)},
        "dtype": options.dtype or "float32",
        "clean": not options.raw,
        "halving": options.halving,
        "pairs": hashlib.sha256(content.encode()).hexdigest(),
    }


def _weights(embedder: Embedder) -> dict[str, Any]:
    """The files that the scores come from, by digest."""
    described = embedder.describe()
    adapter = described["adapter"]
    return {
        "weights": described["model"]["files"],
        "adapter weights": adapter and adapter["files"],
        "tokenizer": described["tokenizer"]["sha256"],
    }


COMMANDS: Final[dict[str, tuple[type, Callable[[Any], object]]]] = {
    "search": (SearchOptions, search),
    "build": (BuildOptions, demos_build.build),
}
