"""Run what a table of the paper ran, and compare our scores with those that were published.

    python -m eval.reproduce sts-icl --models opt-125m opt-350m --data SentEval/data/downstream
    python -m eval.reproduce rivals --models Llama-2-7b-hf --data SentEval/data/downstream

A model is one of the table's by hub name, by its last part (opt-125m), or by a folder that ends so;
any other model is run in the same way and has no published figures. Rows that are done are kept in
the output folder and not run again.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from eval.reproduce import published
from eval.reproduce import report as reproduce_report
from eval.reproduce.published import Row
from eval.reproduce.rivals import rivals, untrained_methods
from eval.reproduce.shared import Lender
from eval.shared import results
from eval.shared.vector_cache import CacheOptions
from eval.sts import command as sts
from eval.sts import original
from eval.sts import tasks as sts_tasks
from eval.transfer import command as transfer
from eval.transfer import tasks as transfer_tasks
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check, flag
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths, same_work
from prompteol_jax.storage.fingerprint import file_sha256

BAND: Final = 0.3  # points by which ours may differ from a published figure
RowOptions = sts.StsOptions | transfer.TransferOptions
Table = Literal["sts-icl", "sts-finetuned", "sts-zero-shot", "transfer", "quantization", "rivals"]


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(CacheOptions):
    """Run a table of the paper: ours, published, difference, and whether it is within 0.3."""

    table: Annotated[Table, tyro.conf.Positional]
    """The table to run."""
    data: Path
    """SentEval's `downstream` folder, or the folder that holds it."""
    models: tuple[str, ...] = ()
    """Models of the table, or any others; all of the table unless given."""
    output: Path = Path("runs/reproduce")
    """Folder for a result and a page a row; what it holds already is not run again."""
    adapter: str | None = None
    """Adapter instead of the published one, or for a model that the table does not have."""
    template: str | None = None
    """Template for a model that the table does not have."""
    strict_original: bool = False
    """Do to numbers what the released script does; see docs/guides/reproduce.md."""
    mesh: str = "1x1"
    """DATAxMODEL: devices along each axis; a CPU simulates what it lacks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and weights; the published runs are float32 unless quantized."""
    batch_tokens: int | None = flag(None, at_least=1)
    """Tokens computed at once over all devices; chosen for the device by default."""
    json: Path | None = None
    """File for every cell."""
    report: Path | None = None
    """File for a page of HTML; OUTPUT/TABLE.html unless given."""


@dataclass(frozen=True)
class Outcome:
    """A row of the table and what became of it: a result, or the reason why there is none."""

    row: Row
    result: Mapping[str, Any] | None
    reason: str = ""

    def cells(self, table: str) -> Iterator[dict[str, Any]]:
        """Yield for each task and the average ours, published, and whether it is in the band."""
        if self.result is None:
            return
        for cell in published.cells(self.result, self.row, table):
            yield {
                **cell._asdict(),
                "derived": cell.task == "average" and self.row.derived,
                "difference": cell.difference,
                "within": None if cell.difference is None else abs(cell.difference) <= BAND,
            }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.reproduce", ReproduceOptions, run, argv)


def run(options: ReproduceOptions) -> dict[str, Any]:
    """Run the rows that are not done, print the cells, write the files and return them all.

    Raises: UserError where not a single row could be run, naming the reason of each.
    """
    check(options)
    rows = choose(options)
    data = _describe_data(options)
    page = options.report or options.output / f"{options.table}.html"
    paths.refuse_buckets(options.output)
    results.prepare(options.json, page)
    outcomes, lender = [], Lender() if options.table == "rivals" else None
    for number, row in enumerate(rows, 1):
        sys.stderr.write(f"{number} of {len(rows)}: {row.name}\n")
        outcomes.append(attempt(options, row, data, lender))
    if all(outcome.result is None for outcome in outcomes):
        reasons = [f"{o.row.name}: {o.reason}" for o in outcomes]
        raise UserError("no row could be run:\n  " + "\n  ".join(reasons))
    result = {
        **results.stamp("eval.reproduce"),
        "table": options.table,
        "band": BAND,
        "strict_original": sorted(original.listed("strict")) if options.strict_original else [],
        "rows": [
            {
                **dataclasses.asdict(o.row),
                "parameters": o.result and o.result["provenance"]["model"]["parameters"],
                "reason": o.reason,
                "cells": list(o.cells(options.table)),
            }
            for o in outcomes
        ],
        "data": data,
        "options": dataclasses.asdict(options),
    }
    reproduce_report.print_cells(result)
    reproduce_report.write_page(page, result)
    if options.json:
        results.write(options.json, result)
    return result


def _describe_data(options: ReproduceOptions) -> dict[str, Any]:
    """Read and check the data, before any model, and return its record."""
    if options.table == "transfer":
        chosen = transfer_tasks.read_transfer(options.data)
        return transfer_tasks.describe_data(options.data, chosen)
    return sts_tasks.describe_data(options.data, "test", sts_tasks.read_tasks(options.data))


def choose(options: ReproduceOptions) -> list[Row]:
    """Find the rows to run.

    Raises: UserError naming every model that the table does not have and that lacks what the table
        is about, and every template for a model that it has.
    """
    if options.table == "transfer" and options.strict_original:
        raise UserError("--strict-original changes cosines; transfer tasks have none: leave it out")
    given = [f"--{name}" for name in ("adapter", "template") if getattr(options, name)]
    if options.table == "rivals" and given:
        raise UserError(f"{' and '.join(given)}: methods of table rivals bring their own prompts")
    every = rivals() if options.table == "rivals" else published.TABLES[options.table]
    if not options.models:
        return list(every)
    rows, problems = [], []
    for model in options.models:
        found = published.of_model(every, model)
        if not found and options.table == "rivals":
            found = [Row(model, method=method) for method in untrained_methods()]
        if not found:
            found = [Row(model, adapter=options.adapter, template=options.template or "eol")]
            if options.table == "sts-icl" and options.template is None:
                problems.append(f"no demonstration was published for {model}: give --template")
            if options.table == "sts-finetuned" and options.adapter is None:
                problems.append(f"no adapter was published for {model}: give --adapter")
        elif options.template is not None:
            problems.append(f"{model} has its published template: leave --template out")
        # A name without an owner means the model of the table; a folder is read where it is.
        given = found[0].model if model.lower() == found[0].model.split("/")[-1].lower() else model
        rows += [
            dataclasses.replace(row, model=given, adapter=options.adapter or row.adapter)
            for row in found
        ]
    if problems:
        raise UserError("; ".join(problems))
    return rows


def attempt(
    options: ReproduceOptions, row: Row, data: Mapping[str, Any], lender: Lender | None = None
) -> Outcome:
    """Run a row unless its result is there; a checkpoint out of reach is a reason, no error.

    Args:
        lender: what lends the model to rows that share it.
    """
    if row.missing:
        return Outcome(row, None, row.missing)
    settings = row_options(options, row)
    if (kept := _kept(settings, data)) is not None:
        sys.stderr.write(f"{row.name}: kept from {settings.json}\n")
        return Outcome(row, kept)
    try:
        if isinstance(settings, transfer.TransferOptions):
            return Outcome(row, transfer.run(settings))
        return Outcome(row, sts.run(settings, lender))
    except (UserError, OSError) as error:
        return Outcome(row, None, str(error))  # the data was read before: it is the checkpoint


def row_options(options: ReproduceOptions, row: Row) -> RowOptions:
    """Return the options of `eval.sts` or `eval.transfer` with which a row is run."""
    strict = "float16" if row.half or row.quantize else "float32"
    strict = strict if options.strict_original else None
    prompts = row.method or row.template
    parts = [row.model, row.adapter, prompts, row.quantize, options.dtype, strict]
    name = "-".join("".join(c if c.isalnum() or c in ".-" else "_" for c in p) for p in parts if p)
    file = options.output / options.table / f"{name}.json"
    shared = {
        **{"model": row.model, "adapter": row.adapter},
        **({"method": row.method} if row.method else {"template": row.template}),
        **{"mesh": options.mesh, "dtype": options.dtype, "quantize": row.quantize},
        **{"batch_tokens": options.batch_tokens, "data": options.data},
        **{"json": file, "report": file.with_suffix(".html")},
        **{"cache": options.cache, "no_cache": options.no_cache},
    }
    if options.table == "transfer":
        return transfer.TransferOptions(**shared)
    return sts.StsOptions(**shared, strict_original=strict)


def _kept(settings: RowOptions, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result of the same options, files, data and version, where there is one."""
    version = results.stamp("")["version"]
    now = {
        "options": _deciding(dataclasses.asdict(settings)),
        "data": data["sha256"],
        "version": version,
    }
    assert settings.json is not None  # `row_options` names it
    try:
        result = results.read(settings.json)
        provenance = result["provenance"]
        before = {
            "options": _deciding(result["options"]),
            "data": result["data"]["sha256"],
            "version": result["version"],
        }
        differing = same_work.differences(before, now) + _changed_files(provenance)
    except (OSError, UserError, LookupError, TypeError):
        return None  # none, or one that a kill left unfinished
    if not differing:
        return result
    sys.stderr.write(f"{settings.json} is not used again: {'; '.join(differing)}\n")
    return None


def _deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide a result."""
    return {name: value for name, value in options.items() if name not in ("cache", "no_cache")}


def _changed_files(provenance: Mapping[str, Any]) -> list[str]:
    return [
        f"{path} has changed"
        for part in (provenance["model"], provenance["adapter"])
        if part
        for name, digest in part["files"].items()
        if file_sha256(path := Path(part["folder"]) / name) != digest
    ]
