"""Run tasks of MTEB by name, where its hub can be reached.

    python -m eval.mteb --model facebook/opt-2.7b --tasks STS12 Banking77Classification

Needs the extra `mteb`. A prompt may differ by type of task: --task-templates Retrieval=mine.json,
and so may a method: --task-methods STS=metaeol.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eval.mteb import report
from eval.shared import results
from eval.shared.command import ScoringOptions
from prompteol_jax.cli.commands import run_main
from prompteol_jax.cli.options import check
from prompteol_jax.errors import UserError
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.record import Method
from prompteol_jax.storage import paths
from prompteol_jax.text.template import Template, read_template


@dataclass(frozen=True, kw_only=True)
class MtebOptions(ScoringOptions):
    """Run tasks of MTEB: 100 x the main score of each; float32."""

    tasks: tuple[str, ...]
    """Names of MTEB, such as STS12 Banking77Classification."""
    task_templates: tuple[str, ...] = ()
    """TYPE=TEMPLATE for a type of task; TYPE:query=TEMPLATE, TYPE:document=TEMPLATE for a side of
    it; query=TEMPLATE, document=TEMPLATE for a side of every type."""
    task_methods: tuple[str, ...] = ()
    """TYPE=METHOD and so on, in the place of a template; see `prompteol methods`."""
    output: Path | None = None
    """Folder for MTEB's result files; a task is not run again where the folder holds its result of
    the same weights, adapter, templates, methods and settings."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main("python -m eval.mteb", MtebOptions, run, argv)


def run(options: MtebOptions) -> dict[str, Any]:
    """Run the tasks, print the scores, write the files asked for and return the result.

    Raises: UserError where the extra is not installed, a task is unknown or a template is wrong;
        Unreachable for data that could not be fetched.
    """
    if find_spec("mteb") is None:
        raise UserError('mteb is not installed; it is an extra: pip install ".[mteb]"')
    from eval.mteb import encoder as mteb_encoder

    check(options)
    prompts = read_task_prompts(options.task_templates, options.task_methods)
    tasks = mteb_encoder.find_tasks(options.tasks)
    paths.refuse_buckets(options.output)
    results.prepare(options.json, options.report)
    embedder = options.load("float32")
    encoder = mteb_encoder.MtebEncoder(embedder, prompts, clean=not options.raw)
    start = time.perf_counter()
    found = mteb_encoder.run_tasks(encoder, tasks, options.output)
    scores = {name: task["score"] for name, task in found.items()}
    result = {
        **results.header("eval.mteb", embedder, options),
        "scores": scores,
        "average": round(sum(scores.values()) / len(scores), 2),
        "detail": found,
        "clean": not options.raw,
        "seconds": round(time.perf_counter() - start, 3),
        **mteb_encoder.describe_prompts(prompts),
        "kept_under": encoder.revision,
        **results.record(embedder, options),
    }
    report.print_scores(result)
    if options.json:
        results.write(options.json, result)
    if options.report:
        report.write_report(options.report, result)
    return result


def read_task_prompts(
    templates: Sequence[str], methods: Sequence[str] = ()
) -> dict[str, Template | Method]:
    """Read templates and methods by type of task, or by type and side.

    Raises: UserError naming all that is not TYPE=TEMPLATE or TYPE=METHOD, or a type that is given
        two; as `read_template` and `find_method` otherwise.
    """
    found: dict[str, Template | Method] = {}
    kinds = (templates, "template", read_template), (methods, "method", find_method)
    for given, what, read in kinds:
        wrong = [text for text in given if not all(text.partition("="))]
        if wrong:
            raise UserError(
                f"--task-{what}s takes TYPE={what.upper()} such as Retrieval=eol, not "
                f"{', '.join(wrong)}"
            )
        for key, _, name in (text.partition("=") for text in given):
            if key in found:
                raise UserError(f"--task-{what}s {key}={name}: {key} has another prompt already")
            found[key] = read(name)
    return found
