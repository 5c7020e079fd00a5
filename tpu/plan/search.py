"""Which mesh, which slice: plans tried and ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prompteol_jax.errors import UserError
from prompteol_jax.mesh import check_mesh, fitting_meshes, parse_mesh
from prompteol_jax.progress import progress_bar
from tpu.chips import CHIPS, Topology, parse_topology, slices
from tpu.plan.jobs import Encode, Train
from tpu.plan.planning import Plan, make_plan

AUTO: Final = "auto"
SMALLEST_OF: Final = "v5e"  # the chip whose slices `--topology auto` goes through


def meshes(job: Encode | Train, topology: Topology, mesh: str) -> list[tuple[int, int]]:
    """The meshes to try over all chips of a slice.

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
    """Plans of one slice, the fastest first, those that do not fit last by what they lack.

    With topology `auto` the slice is the smallest that some mesh fits.
    """
    if topology != AUTO:
        return _ranked(name, job, parse_topology(topology), mesh)
    for candidate in slices(CHIPS[SMALLEST_OF]):
        if mesh == AUTO and not fitting_meshes(
            job.config.sizes, candidate.devices, batch=getattr(job, "batch", None)
        ):
            continue
        plans = _ranked(name, job, candidate, mesh)
        if plans[0].fits:
            return plans
    return plans


def _ranked(name: str, job: Encode | Train, topology: Topology, mesh: str) -> list[Plan]:
    shapes = meshes(job, topology, mesh)
    plans = []
    with progress_bar(f"{name} on {topology}", len(shapes)) as advance:
        for shape in shapes:
            plans.append(make_plan(name, job, topology, shape))
            advance()
    return sorted(plans, key=rank)


def rank(plan: Plan) -> tuple[bool, float]:
    """What plans are sorted by: seconds a real token, then bytes for those that do not fit."""
    if plan.fits:
        return False, plan.estimated_s / plan.real_tokens
    return True, float(plan.needed_bytes)


def sweep(
    name: str, job: Encode | Train, topologies: Sequence[Topology], mesh: str
) -> list[tuple[str, Plan]]:
    """The best plan of every slice, `weak` at the first slice's load per chip, `strong` in all.

    The job's own load is that of the first slice, which is planned once for both.
    """
    first = topologies[0].devices
    found: list[tuple[str, Plan]] = []
    for kind in ("weak", "strong"):
        for topology in topologies:
            load = topology.devices / first if kind == "weak" else 1.0
            same = found[:1] if topology.devices == first else []
            plan = same[0][1] if same else _best(name, job.scaled(load, first), topology, mesh)
            found.append((kind, plan))
    return found


def _best(name: str, job: Encode | Train, topology: Topology, mesh: str) -> Plan:
    return _ranked(name, job, topology, mesh)[0]
