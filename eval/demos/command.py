"""Find the demonstration that serves a model best, as the paper did, and make candidates.

    python -m eval.demos build --model M --data SentEval/data/downstream --output candidates.jsonl
    python -m eval.demos search --model M --data SentEval/data/downstream \\
        --candidates candidates.jsonl --output runs/demos

Every candidate is scored on STS-B dev. The folder gets a journal, from which the same command goes
on after a kill, and `template.json`, which every command takes as --template: the best template, or
the one that was given where no candidate is better.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval.demos import build as demos_build
from eval.demos import candidates as demos_candidates
from eval.demos import cost as demos_cost
from eval.demos import report as demos_report
from eval.demos.build import BuildOptions
from eval.demos.search import Scored, Search
from eval.shared import results
from eval.shared.command import SentEvalOptions
from eval.shared.journal import Journal
from eval.sts.pairs import Task
from eval.sts.tasks import describe_data, read_tasks
from prompteol_jax.cli.commands import run_one_of
from prompteol_jax.cli.options import check, flag
from prompteol_jax.encoding.prefixes import PrefixEncoder
from prompteol_jax.storage import paths
from prompteol_jax.storage.lease import held
from prompteol_jax.text.template import Template

JOURNAL: Final = "journal.jsonl"
TEMPLATE: Final = "template.json"


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SentEvalOptions):
    """Rank demonstrations by 100 x Spearman on STS-B dev and writes the best template.

    Repeat a command that was interrupted and it goes on where it stopped.
    """

    candidates: Path
    """.jsonl or .csv with text and word, put into --template; or .txt, the original's notation."""
    output: Path
    """Folder for the journal and the best template, which is --template where none is better."""
    halving: bool = False
    """Score all on an eighth of the pairs, the better half on a quarter, and so on."""
    shots: int = flag(1, at_least=1)
    """Demonstrations to end with: each further one is tried behind the best so far."""
    pool: int = flag(50, at_least=1)
    """Best single candidates that are tried as a further demonstration."""

    def problems(self) -> list[str]:
        """List what does not fit a search."""
        found = []
        if self.pooling != "last":
            found.append(f"--pooling {self.pooling}: demonstrations are compared at the last token")
        if self.output.exists() and not self.output.is_dir():
            found.append(f"--output {self.output} is a file; give a folder")
        return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    description = "Demonstrations: a search for the best one, and sets of candidates."
    run_one_of("python -m eval.demos", description, COMMANDS, argv)


def search(options: SearchOptions) -> dict[str, Any]:
    """Rank the candidates, print the best, write the files and return the result."""
    check(options)
    base = options.base_template()
    candidates = demos_candidates.read_candidates(options.candidates, base)
    (task,) = read_tasks(options.data, split="dev")
    data = describe_data(options.data, "dev", [task])
    paths.refuse_buckets(options.output)
    results.prepare(options.json, options.report, options.output / JOURNAL)
    with held(options.output, "a search"):
        journal = Journal(options.output / JOURNAL, _work(options, data["sha256"]))
        return _search(options, (base, candidates), task, data, journal)


def _search(
    options: SearchOptions,
    templates: tuple[Template, Sequence[Template]],
    task: Task,
    data: Mapping[str, Any],
    journal: Journal,
) -> dict[str, Any]:
    """Score the template as it is and the candidates, and write the outcome."""
    base, candidates = templates
    embedder = options.load("float32")
    start = time.perf_counter()
    encoder = embedder.prefix_encoder(options.batch_tokens)
    found = Search(
        encoder, task.subsets[0], journal, halving=options.halving, clean=not options.raw
    )
    bare = found.base(base)
    ranking = _rank(found, candidates, options, len(base.demonstrations))
    seconds = round(time.perf_counter() - start, 3)
    result = {
        **results.header("eval.demos", embedder, options),
        **demos_report.outcome(bare, ranking),
        "candidates": len(candidates),
        "stages": list(found.stages),
        "resumed": journal.resumed,
        "clean": not options.raw,
        "seconds": seconds,
        "data": data,
        "operations": _operations(encoder, ranking, found),
        **results.record(embedder, options),
    }
    _write(options, result, demos_report.best_of(bare, ranking).template)
    return result


def _write(options: SearchOptions, result: Mapping[str, Any], best: Template) -> None:
    """Write the best template and the files asked for, and print the table."""
    results.write(options.output / TEMPLATE, best.to_json())
    demos_report.print_table(result)
    is_bare = result["best"]["rank"] == 0
    named = "--template as it is, since no candidate is better" if is_bare else "the best template"
    sys.stderr.write(f"{options.output / TEMPLATE}: {named}\n")
    if options.json:
        results.write(options.json, result)
    if options.report:
        demos_report.write_report(options.report, result, best)


def _rank(
    found: Search, candidates: Sequence[Template], options: SearchOptions, common: int
) -> list[Scored]:
    """Return candidates of all shots, best first; those scored on fewer pairs come last."""
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
    encoder: PrefixEncoder, ranking: Sequence[Scored], found: Search
) -> dict[str, Any] | None:
    """Count what was computed, and what each template alone would cost; None where resumed."""
    if found.journal.resumed:
        return None
    texts = found.texts()
    ours = demos_cost.of_search(encoder)
    alone = demos_cost.of_each_alone(encoder, [s.template for s in ranking], texts)
    return {
        "search": ours,
        "each_alone": alone,
        "share": round(ours / alone, 4),
        "not_counted": encoder.alone_texts - len(texts),  # without the bare template
    }


def _work(options: SearchOptions, pairs: str) -> dict[str, Any]:
    """Return what decides a score, the template left out: its content names a candidate."""
    work = options.work("float32")
    return {
        **{name: value for name, value in work.items() if name not in ("template", "prompt")},
        "clean": not options.raw,
        "halving": options.halving,
        "pairs": pairs,
    }


COMMANDS: Final[dict[str, tuple[type, Callable[[Any], object]]]] = {
    "search": (SearchOptions, search),
    "build": (BuildOptions, demos_build.build),
}
