"""Score a model on MR, CR, SUBJ, MPQA, SST2, TREC and MRPC, with SentEval's linear probes.

    python -m eval.transfer --model facebook/opt-2.7b --data SentEval/data/downstream --json t.json

The table goes to standard output, progress to standard error. Every file is read and checked
before the model is loaded.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.shared import bootstrap, results
from eval.shared.command import SentEvalOptions
from eval.shared.vector_cache import CacheOptions
from eval.transfer import report
from eval.transfer import scores as transfer_scores
from eval.transfer.tasks import describe_data, read_transfer
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check, flag


@dataclass(frozen=True, kw_only=True)
class TransferOptions(SentEvalOptions, CacheOptions):
    """Score a model on the seven transfer tasks: accuracy of a linear probe on its vectors."""

    tasks: tuple[str, ...] = ()
    """Tasks to score, such as MR TREC; all seven unless given."""
    fast: bool = False
    """SentEval's quick settings: five folds, RMSprop, batches of 32. Not comparable with papers."""
    seed: int = flag(transfer_scores.SEED, at_least=0, below=2**32)
    """Seed of first weights, shuffles and held-out rows, as SentEval's seed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.transfer", TransferOptions, run, argv)


def run(options: TransferOptions) -> dict[str, Any]:
    """Score the model, print the table, write the files asked for and return the result."""
    check(options)
    results.prepare(options.json, options.report)
    protocol = transfer_scores.FAST if options.fast else transfer_scores.SENTEVAL
    chosen = read_transfer(options.data, options.tasks, folds=protocol.folds)
    embedder = options.load("float32")
    start = time.perf_counter()
    encoder = options.cached(embedder)
    scored = transfer_scores.evaluate_transfer(
        encoder,
        chosen,
        protocol=protocol,
        seed=options.seed,
        clean=not options.raw,
    )
    seconds = round(time.perf_counter() - start, 3)
    examples = scored.pop("examples")
    result = {
        **results.header("eval.transfer", embedder, options),
        **scored,
        "intervals": bootstrap.intervals(examples),
        "clean": not options.raw,
        "protocol": dataclasses.asdict(protocol) | {"seed": options.seed},
        "seconds": seconds,
        "from_cache": getattr(encoder, "found", 0),
        "data": describe_data(options.data, chosen),
        **results.record(embedder, options),
        "examples": examples,
    }
    report.print_scores(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        report.write_report(options.report, result)
    return result
