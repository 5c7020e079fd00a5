"""Which mesh, which slice: plans tried and ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from prompteol_jax.errors import UserError, listed
from prompteol_jax.mesh import check_mesh, fitting_meshes, parse_mesh
from prompteol_jax.progress import progress_bar
from tpu.chips import CHIPS, Topology, parse_topology, slices
from tpu.plan.jobs import Encode, Train
from tpu.plan.planning import Plan, make_plan

AUTO: Final = "auto"
SMALLEST_OF: Final = "v5e"  # the chip whose slices `--topology auto` goes through


def meshes(job: Encode | Train, topology: Topology, mesh: str) -> list[tuple[int, int]]:
    """Return the meshes to try over all chips of a slice.

    Raises: UserError where the mesh that was asked for has another number of chips or does not
        fit the model or the batch, or where none does.
    """
    batch = getattr(job, "batch", None)
    if mesh == AUTO:
        found = fitting_meshes(job.config.sizes, topology.devices, batch=batch)
        if not found:
            check_mesh(job.config.sizes, (topology.devices, 1), batch=batch)
        return found
    shape = parse_mesh(mesh)
    if shape[0] * shape[1] != topology.devices:
        raise UserError(
            f"mesh {mesh} has {shape[0] * shape[1]} devices, {topology} has {topology.devices}"
        )
    check_mesh(job.config.sizes, shape, batch=batch)
    return [shape]


def ranking(name: str, job: Encode | Train, topology: str, mesh: str) -> list[Plan]:
    """Plan one slice; return the fastest plan first, those that do not fit last by what they lack.

    With topology `auto` the slice is the smallest that the job fits.

    Raises: UserError where no slice has a mesh for the job.
    """
    if topology != AUTO:
        return _ranked(name, job, parse_topology(topology), mesh)
    candidates = _with_meshes(job, mesh)
    for candidate in candidates:
        plans = _ranked(name, job, candidate, mesh)
        if plans[0].fits:
            break
    return plans


def _with_meshes(job: Encode | Train, mesh: str) -> list[Topology]:
    """Return the usual slices that the job has a mesh on, from the smallest.

    Raises: UserError where there is none.
    """
    usual, batch = list(slices(CHIPS[SMALLEST_OF])), getattr(job, "batch", None)
    if mesh == AUTO:
        return [s for s in usual if fitting_meshes(job.config.sizes, s.devices, batch=batch)]
    devices = math.prod(parse_mesh(mesh))
    found = [slice_ for slice_ in usual if slice_.devices == devices]
    if not found:
        raise UserError(f"mesh {mesh} has {devices} devices; slices are {listed(usual)}")
    return found


def _ranked(name: str, job: Encode | Train, topology: Topology, mesh: str) -> list[Plan]:
    shapes = meshes(job, topology, mesh)
    plans = []
    with progress_bar(f"{name} on {topology}", len(shapes)) as advance:
        for shape in shapes:
            plans.append(make_plan(name, job, topology, shape))
            advance()
    return sorted(plans, key=rank)


def rank(plan: Plan) -> tuple[bool, float]:
    """Return the sort key of a plan: seconds a real token, or bytes for one that does not fit."""
    if plan.fits:
        assert plan.estimated_s is not None  # a plan that fits has its times
        return False, plan.estimated_s / plan.real_tokens
    return True, float(plan.needed_bytes)


def sweep(
    name: str, job: Encode | Train, topologies: Sequence[Topology], mesh: str
) -> list[tuple[str, Plan]]:
    """Return the best plan of every slice.

    Kind `weak` has the first slice's load per chip, `strong` its load in all. The job's own load is
    that of the first slice, which is planned once for both.

    Raises: UserError for a slice without a mesh, before anything is compiled.
    """
    first = topologies[0]
    jobs = [
        (kind, job.scaled(t.devices / first.devices if kind == "weak" else 1.0, first.devices), t)
        for kind in ("weak", "strong")
        for t in topologies
    ]
    for _, scaled, topology in jobs:
        meshes(scaled, topology, mesh)
    found: list[tuple[str, Plan]] = []
    for kind, scaled, topology in jobs:
        known = found and topology == first
        plan = found[0][1] if known else _ranked(name, scaled, topology, mesh)[0]
        found.append((kind, plan))
    return found
