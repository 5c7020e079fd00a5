"""Make the table of which models fit which slices, for one job.

    python -m tpu.fits --job encode --models opt-1.3b,llama-7b --slices v5e:1x1,v5e:2x4

Of a slice the mesh with the longest data axis that fits is shown: it has the fewest collectives.
Where a training step fits on none, its batch is encoded in chunks.
Every figure is compiler-estimated, as in `tpu.plan`; the table is Markdown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from prompteol_jax.errors import UserError
from tpu.chips import GIB, parse_topology

PROGRAM: Final = "python -m tpu.fits"
CHUNKS: Final = 16
HOUR_S: Final = 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitsOptions:
    """Plans a job for several models on several slices and prints what fits, as Markdown."""

    job: Literal["encode", "train"] = "encode"
    """Encoding a steady stream, or a LoRA step on 256 triplets."""
    models: str = "opt-1.3b,opt-6.7b,llama-7b,opt-13b,opt-30b,opt-66b"
    """Published shapes, folders or hub names, separated by commas."""
    slices: str = "v5e:1x1,v5e:2x4,v5e:4x4,v5p:2x2x1"
    """Slices, separated by commas."""
    quantize: Literal["nf4", "int8"] | None = None
    """Kind of the linear layers' frozen matrices."""
    remat: Literal["none", "dots", "full"] = "full"
    """Train: what the backward pass recomputes."""
    json: Path | None = None
    """File that every plan is added to as soon as it is made; a plan that it holds, of the same
    versions of this package, jax and libtpu, is not made again."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, FitsOptions, run, argv)


def run(options: FitsOptions) -> list[dict[str, Any]]:
    """Plan every cell, print the table and return its cells.

    Raises: UserError for models and slices that are not known, before anything is compiled.
    """
    from prompteol_jax import runtime
    from prompteol_jax.storage.atomic import write_whole
    from tpu.plan.command import find_config, problems

    runtime.run_on_cpu()
    names, slices = options.models.split(","), options.slices.split(",")
    if wrong := problems(parse_topology, slices) + problems(find_config, names):
        raise UserError("; ".join(wrong))
    known = _read(options.json)
    for model in names:
        for slice_ in slices:
            wanted = _key(options, model, slice_)
            if any(cell["key"] == wanted for cell in known):
                continue
            sys.stderr.write(f"{model} on {slice_}\n")
            known.append({"key": wanted, "plan": _planned(options, model, slice_)})
            if options.json is not None:
                text = (json.dumps(known, indent=1) + "\n").encode()
                write_whole(options.json, lambda file, text=text: file.write(text))
    sys.stdout.write(table(options, known))
    return known


def table(options: FitsOptions, cells: Sequence[dict[str, Any]]) -> str:
    """Return the cells in Markdown: mesh, rate, chip hours for a million sentences, room left."""
    names, slices = options.models.split(","), options.slices.split(",")
    plans = {tuple(cell["key"].values()): cell["plan"] for cell in cells}
    lines = [f"| {options.job} | {' | '.join(slices)} |", "| --- |" + " --- |" * len(slices)]
    for model in names:
        found = [plans[tuple(_key(options, model, slice_).values())] for slice_ in slices]
        lines.append(f"| {model} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines) + "\n"


def _key(options: FitsOptions, model: str, slice_: str) -> dict[str, Any]:
    remat = options.remat if options.job == "train" else None
    return {
        "job": options.job,
        "model": model,
        "slice": slice_,
        "quantize": options.quantize,
        "remat": remat,
        "versions": _versions(),
    }


def _versions() -> str:
    """Return the versions that decide what a plan says; without libtpu there are no plans."""
    found = []
    for package in ("prompteol-jax", "jax", "libtpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


def _planned(options: FitsOptions, model: str, slice_: str) -> dict[str, Any] | None:
    """Plan the first mesh that fits, else the one that lacks least; None where there is no mesh.

    The plan also says in how many `chunks` a training batch is encoded.
    """
    from prompteol_jax.mesh import fitting_meshes
    from tpu.plan.command import PlanOptions, make_job
    from tpu.plan.planning import make_plan

    recomputed: dict[str, Any] = {"remat": options.remat} if options.job == "train" else {}
    asked = PlanOptions(model=model, job=options.job, quantize=options.quantize, **recomputed)
    topology, best = parse_topology(slice_), None
    for chunks in (1, CHUNKS) if options.job == "train" else (1,):
        job = make_job(dataclasses.replace(asked, chunks=chunks))
        batch = getattr(job, "batch", None)
        meshes = fitting_meshes(job.config.sizes, topology.devices, batch=batch)
        for shape in sorted(meshes, reverse=True):
            found = make_plan(model, job, topology, shape)
            if best is None or found.fits or found.needed_bytes < best["needed_bytes"]:
                best = dataclasses.asdict(found) | {"chunks": chunks}
            if found.fits:
                return best
    return best


def _cell(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "no mesh"
    left = (plan["hbm_bytes"] - plan["needed_bytes"]) / GIB
    if not plan["fits"]:
        return f"{-left:.1f} GiB too much"
    rate, (data, model) = plan["sentences_per_s"], map(int, plan["mesh"].split("x"))
    hours = data * model * 1e6 / rate / HOUR_S
    chunks = f", {plan['chunks']} chunks" if plan["chunks"] > 1 else ""
    return f"{plan['mesh']}{chunks}: {rate:,.0f}/s, {hours:.2f} h, {left:.1f} GiB left"


def _read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))
        return [{"key": dict(cell["key"]), "plan": cell["plan"]} for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no file of {PROGRAM} --json: {error}") from None


if __name__ == "__main__":
    main()
