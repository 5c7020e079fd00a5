"""Sweep the settings of a method on STS-B dev, and write the record that scores best.

    python -m eval.search --model M --data SentEval/data/downstream --method tp/eol \\
        --over layer,exit --json sweep.json

States of all layers come out of one pass, and edits are arguments of the compiled program: a sweep
over layers, copy ranges, scales and blocks encodes each edit once and compiles nothing again. The
output folder gets a journal, from which the same command goes on after a kill, and `method.json`,
which every command takes as --method.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval.search import report
from eval.search.axes import parse_axes
from eval.search.sweep import Sweep, cells_of, fixed_cells, summaries
from eval.shared import results
from eval.shared.command import SentEvalOptions
from eval.shared.journal import Journal
from eval.sts.pairs import Task
from eval.sts.tasks import describe_data, read_tasks
from prompteol_jax import Embedder
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check
from prompteol_jax.methods.library import find_method, write_method
from prompteol_jax.methods.record import Method
from prompteol_jax.pretrained import source
from prompteol_jax.storage import paths
from prompteol_jax.storage.lease import held

JOURNAL: Final = "journal.jsonl"
RECORD: Final = "method.json"


@dataclass(frozen=True, kw_only=True)
class SweepOptions(SentEvalOptions):
    """Sweep a method's settings: 100 x Spearman on STS-B dev; the best record is written.

    Repeat a command that was interrupted and it goes on where it stopped.
    """

    over: str
    """Settings to sweep, such as layer,exit or layer=-1/-2,exit=1..8,scale=0.5/2."""
    output: Path = Path("runs/search")
    """Folder for the journal and the best record."""

    def problems(self) -> list[str]:
        """List what does not fit a sweep."""
        found = [
            f"--{name}: a record decides it; leave it out"
            for name in ("template", "layer", "pooling")
            if getattr(self, name) != getattr(SentEvalOptions, name, None)
        ]
        if self.output.exists() and not self.output.is_dir():
            found.append(f"--output {self.output} is a file; give a folder")
        return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.search", SweepOptions, run, argv)


def run(options: SweepOptions) -> dict[str, Any]:
    """Sweep, print the table, write the best record and the files asked for, return the result."""
    check(options)
    method = find_method(options.method or "eol")
    axes = parse_axes(options.over, method, source.resolve_config(options.model).L)
    (task,) = read_tasks(options.data, split="dev")
    data = describe_data(options.data, "dev", [task])
    paths.refuse_buckets(options.output)
    results.prepare(options.json, options.report, options.output / JOURNAL)
    with held(options.output, "a sweep"):
        journal = Journal(options.output / JOURNAL, _work(options, data["sha256"]))
        # The whole model: cells may read any layer.
        whole = dataclasses.replace(options, method=None, any_method=True)
        embedder = whole.load("float32")
        result, best = sweep(options, embedder, method, axes, (task, data), journal)
        write_record(options.output, best)
    report.print_table(result)
    sys.stderr.write(f"{options.output / RECORD}: {result['best']['name']}\n")
    if options.json:
        results.write(options.json, result)
    if options.report:
        report.write_report(options.report, result)
    return result


def _work(options: SweepOptions, pairs: str) -> dict[str, Any]:
    """Return what decides a score, the record left out: its content names a cell."""
    work = dataclasses.replace(options, method=None).work("float32")
    names = ("template", "prompt", "method", "pooling", "layer")
    kept = {name: value for name, value in work.items() if name not in names}
    return {**kept, "clean": not options.raw, "pairs": pairs}


def sweep(
    options: SweepOptions,
    embedder: Embedder,
    method: Method,
    axes: Mapping[str, Sequence[Any]],
    task_and_data: tuple[Task, Mapping[str, Any]],
    journal: Journal,
) -> tuple[dict[str, Any], Method]:
    """Score every cell, the method as given and its prompts alone; return the result and the best.

    The best is one of the latter two where no cell scores more.
    """
    task, data = task_and_data
    start = time.perf_counter()
    cells = cells_of(method, axes, embedder.decoder.depth)
    none, given = fixed_cells(method, axes, embedder.decoder.depth)
    every = [none, *([given] if given else []), *cells]
    found = Sweep(embedder, task.subsets[0], journal, clean=not options.raw)
    resumed = journal.resumed
    lines = summaries(every, found.run(every), task.gold, none)
    # In a tie the first wins: what needs no choice.
    best = max(range(len(every)), key=lambda n: (lines[n]["score"], -n))
    swept = embedder.with_method(dataclasses.replace(every[best].method, layer=None))
    result = {
        **results.header("eval.search", swept, options),
        "layer": every[best].method.layer,
        "axes": axes,
        "cells": lines[len(every) - len(cells) :],
        "none": lines[0],
        "given": lines[1] if given else None,
        "best": lines[best],
        "record": json.dumps(every[best].method.to_json(), ensure_ascii=False),
        "encodings": found.encodings,
        "resumed": resumed,
        "clean": not options.raw,
        "pairs": len(task.gold),
        "seconds": round(time.perf_counter() - start, 3),
        "data": data,
        **results.record(swept, options),
    }
    return result, every[best].method


def write_record(folder: Path, method: Method) -> None:
    """Write a record, and next to it the files that it names."""
    write_method(folder / RECORD, method)
    named = [part.file for part in method.post]
    named += [view.transform.file for view in method.prompts if view.transform]
    for name in filter(None, named):
        if method.folder is not None and method.folder.resolve() != folder.resolve():
            shutil.copyfile(method.folder / name, folder / name)
