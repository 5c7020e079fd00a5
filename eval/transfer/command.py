"""Scores a model on MR, CR, SUBJ, MPQA, SST2, TREC and MRPC, with SentEval's linear probes.

    python -m eval.transfer --model facebook/opt-2.7b --data SentEval/data/downstream --json t.json

The table goes to standard output, progress to standard error. Every file is read and checked
before the model is loaded.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval.shared import results
from eval.transfer import report as transfer_report
from eval.transfer import scores as transfer_scores
from eval.transfer.tasks import read_transfer
from prompteol_jax.cli.commands import run_command
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError

COLUMNS: Final = ("task", "tested", "accuracy", "development", "weight decay")


@dataclass(frozen=True, kw_only=True)
class TransferOptions(ModelOptions):
    """Scores a model on the seven transfer tasks: accuracy of a linear probe on its vectors."""

    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    tasks: tuple[str, ...] = ()
    """Tasks to score, such as MR TREC; all seven unless given."""
    fast: bool = False
    """SentEval's quick settings: five folds, RMSprop, batches of 32. Not comparable with papers."""
    seed: int = transfer_scores.SEED
    """Of first weights, shuffles and held-out rows, as SentEval's seed."""
    raw: bool = False
    """Encode sentences as they are, without the original's punctuation rules."""
    json: Path | None = None
    """File for the accuracies and every detail."""
    report: Path | None = None
    """File for a page of HTML with accuracies, published ones and confusions."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    program = "python -m eval.transfer"
    run_command(program, run, tyro.cli(TransferOptions, args=argv, prog=program, config=config))


def run(options: TransferOptions) -> dict[str, Any]:
    """Scores the model, prints the table, writes the file asked for and returns the result."""
    results.prepare(options.json, options.report)
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}; give a number from 0 to {2**32 - 1}")
    protocol = transfer_scores.FAST if options.fast else transfer_scores.SENTEVAL
    chosen = read_transfer(options.data, options.tasks, folds=protocol.folds)
    embedder = options.load("float32")
    start = time.perf_counter()
    scored = transfer_scores.evaluate_transfer(
        embedder, chosen, protocol=protocol, seed=options.seed, clean=not options.raw
    )
    examples = scored.pop("examples")
    result = {
        **results.header(embedder),
        **scored,
        "clean": not options.raw,
        "protocol": dataclasses.asdict(protocol) | {"seed": options.seed},
        "seconds": round(time.perf_counter() - start, 3),
        **results.record(embedder, options),
        "examples": examples,
    }
    print_table(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        transfer_report.write_report(options.report, result, examples)
    return result


def print_table(result: Mapping[str, Any]) -> None:
    """Prints the accuracies under a header that names model, template and dtype."""
    from rich import console, table, text

    quick = ", fast protocol" if result["options"]["fast"] else ""
    grid = table.Table(title=text.Text(results.title(result) + quick), title_justify="left")
    for name in COLUMNS:
        grid.add_column(name, justify="left" if name == "task" else "right")
    for name, detail in result["detail"].items():
        decays = sorted(set(detail["decays"]))
        grid.add_row(
            name,
            str(detail["examples"]),
            f"{detail['test']:.2f}",
            f"{detail['development']:.2f}",
            ", ".join(f"{decay:g}" for decay in decays),
        )
    grid.add_section()
    tested = sum(detail["examples"] for detail in result["detail"].values())
    grid.add_row("average", str(tested), f"{result['average']:.2f}", style="bold")
    console.Console().print(grid)
