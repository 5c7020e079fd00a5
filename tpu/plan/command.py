"""Plan a job for TPUs that are not there: what it needs, how fast it should be.

    python -m tpu.plan --model opt-6.7b --topology v5e:2x4 --mesh auto --job encode

libtpu (extra `tpu`) compiles the job's functions for the named slice, from the model's shape alone.
Times are the compiler's estimates, with collectives and kernels charged as `cost` says: nothing
here is a measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from prompteol_jax.cli.options import check, flag, spelled
from prompteol_jax.errors import NotFound, UserError, nearest
from prompteol_jax.storage import atomic, json_files
from tpu.chips import parse_topology
from train.flags import REMAT_WITH_FSDP

if TYPE_CHECKING:
    from prompteol_jax import models
    from tpu.plan.jobs import Encode, Train

PROGRAM: Final = "python -m tpu.plan"
AUTO: Final = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Plans a job for TPUs: does it fit, how fast should it be, and what binds."""

    model: str
    """A published shape (opt-6.7b, llama-2-7b, llama-3.1-405b, ...), a folder or a hub name."""
    job: Literal["encode", "train"] = "encode"
    """Encoding a steady stream, or a training step on triplets, of LoRA unless --full."""
    topology: str = "v5e:2x4"
    """CHIP:AxB, such as v5e:2x4 or v5p:2x2x1; `auto` finds the smallest v5e slice that fits."""
    mesh: str = AUTO
    """DATAxMODEL over all chips of the slice; `auto` tries those that the model can be cut to."""
    sweep: str | None = None
    """Slices, separated by commas: a table of weak and strong scaling instead of one plan."""
    template: str = "eol"
    """A template's name; it decides how long the shared prefix is."""
    lengths: Path | None = None
    """Lengths of the stream, from `python -m tpu.lengths`; STS-B dev or NLI triplets by default."""
    tokens: int | None = flag(None, at_least=1)
    """Ids of every text and its prompt, instead of --lengths."""
    quantize: Literal["nf4", "int8"] | None = None
    """Kind of the linear layers' frozen matrices."""
    fsdp: bool = False
    """Shard the linear layers' matrices over DATA too, and gather each layer's when it runs."""
    packed: bool = True
    """Encode: several short sentences a row; --no-packed for one a row in fixed buckets."""
    batch_tokens: int | None = flag(None, at_least=1)
    """Encode: tokens computed at once over all devices; the device's own number by default."""
    batch: int = flag(256, at_least=2, why="every anchor needs negatives")
    """Train: triplets of the global batch."""
    chunks: int = flag(1, at_least=1)
    """Train: parts that a batch is encoded in."""
    remat: Literal["none", "dots", "full"] = "dots"
    """Train: what the backward pass recomputes."""
    full: bool = False
    """Train: every weight, in float32 with its two moments, instead of an adapter."""
    json: Path | None = None
    """File for the plan; with several, the best one's fields and `ranking` or `sweep`."""
    plot: Path | None = None
    """File (.svg, .png) for the plot of --sweep."""

    def problems(self) -> list[str]:
        """List names that are wrong, and flags that change nothing in this job."""
        from prompteol_jax.mesh import parse_mesh

        topologies = [*self.slices(), *([] if self.topology == AUTO else [self.topology])]
        return [
            *(f"{flag} changes nothing in {job}: drop it" for flag, job in self._unused()),
            *self._misfits(),
            *problems(parse_topology, topologies),
            *problems(parse_mesh, () if self.mesh == AUTO else (self.mesh,)),
        ]

    def slices(self) -> list[str]:
        """Return the slices of --sweep."""
        return [] if self.sweep is None else self.sweep.split(",")

    def _misfits(self) -> list[str]:
        """Return what no run takes either."""
        wrong = []
        if self.tokens is not None and self.lengths is not None:
            wrong.append("--tokens says how long all texts are, and so does --lengths: drop one")
        if self.full and self.quantize is not None:
            wrong.append(f"--full trains every weight, --quantize {self.quantize} freezes them")
        if self.job == "train" and self.fsdp and self.remat == "none":
            wrong.append(REMAT_WITH_FSDP)
        return wrong

    def _unused(self) -> Iterator[tuple[str, str]]:
        """Yield the flags that were given and that the job does not read."""
        other = {
            "encode": ("batch", "chunks", "remat", "full"),
            "train": ("packed", "batch_tokens"),
        }
        jobs = [(name, f"--job {self.job}") for name in other[self.job]]
        jobs += [
            ("plot", "a plan without --sweep") if self.sweep is None else ("topology", "--sweep")
        ]
        for name, job in jobs:
            field = next(f for f in dataclasses.fields(self) if f.name == name)
            if getattr(self, name) != field.default:
                yield spelled(name), job


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, PlanOptions, run, argv)


def run(options: PlanOptions) -> dict[str, Any]:
    """Plan a job, print the table, and return what `--json` gets."""
    from prompteol_jax import runtime

    runtime.run_on_cpu()  # libtpu compiles; it must not look for a TPU to run on
    from tpu.plan import report, search

    job = make_job(options)
    atomic.prepare(options.json)
    if options.sweep is not None:
        topologies = [parse_topology(name) for name in options.slices()]
        plans = search.sweep(options.model, job, topologies, options.mesh)
        report.print_sweep(plans)
        if options.plot is not None:
            report.plot_sweep(plans, options.plot)
        result = {"sweep": [{"kind": kind} | dataclasses.asdict(plan) for kind, plan in plans]}
    else:
        ranking = search.ranking(options.model, job, options.topology, options.mesh)
        report.print_plans(ranking)
        result = dataclasses.asdict(ranking[0])
        if options.mesh == AUTO:
            result["ranking"] = [dataclasses.asdict(plan) for plan in ranking]
    if options.json is not None:
        json_files.write_object(options.json, result)
    return result


def make_job(options: PlanOptions) -> Encode | Train:
    """Return the job that the flags describe, on any slice.

    Raises: UserError or NotFound for what cannot be planned, before anything is compiled.
    """
    check(options)
    from tpu.lengths import read_lengths
    from tpu.plan.jobs import Encode, Train

    lengths = read_lengths(options.lengths, options.job)
    C, config = lengths.shared(options.template), find_config(options.model)
    if options.tokens is not None:
        lengths = lengths.all_of(options.tokens - C)
    _check_room(options, config.P - C, max(lengths.counts))
    if options.job == "encode":
        return Encode(
            config=config,
            lengths=lengths,
            C=C,
            quantize=options.quantize,
            fsdp=options.fsdp,
            packed=options.packed,
            batch_tokens=options.batch_tokens,
        )
    return Train(
        config=config,
        lengths=lengths,
        C=C,
        quantize=options.quantize,
        full=options.full,
        fsdp=options.fsdp,
        batch=options.batch,
        chunks=options.chunks,
        remat=options.remat,
    )


def _check_room(options: PlanOptions, room: int, longest: int) -> None:
    """Refuse what the positions of a model do not hold; encode cuts sentences, training does not.

    Args:
        room: Positions behind the shared prefix.
        longest: Ids of the longest sentence.
    """
    if room < 1:
        raise UserError(f"template {options.template!r} fills all positions of {options.model}")
    if options.job == "train" and longest > room:
        raise UserError(
            f"--lengths has a sentence of {longest} ids, {options.model} takes {room} behind the "
            "prefix: cut them, as training does, with `python -m tpu.lengths --cut N`"
        )


def find_config(model: str) -> models.Config:
    """Return a model's shape: published, or read from `config.json` of a folder or hub name."""
    from prompteol_jax.models.published import PUBLISHED, published
    from prompteol_jax.pretrained import source

    known = published(model)
    if known is not None and not Path(model).is_dir():
        return known
    try:
        return source.resolve_config(model)
    except FileNotFoundError as error:
        known = f"Shapes known by name: {', '.join(PUBLISHED)}{nearest(model, PUBLISHED)}."
        raise NotFound(f"{error} {known}") from None


def problems(read: Callable[[str], object], texts: Iterable[str]) -> list[str]:
    """Return the errors of reading texts."""
    found = []
    for text in texts:
        try:
            read(text)
        except UserError as error:
            found.append(str(error))
    return found
