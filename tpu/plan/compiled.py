"""Compile a job for TPUs that are not there; read what it needs and costs."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import jax
from jax.sharding import Mesh

from prompteol_jax import runtime
from prompteol_jax.errors import UserError
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models.memory import device_bytes
from prompteol_jax.ops.einsum import matrix_flops
from tpu.chips import Topology
from tpu.plan import cost, hlo
from tpu.plan.jobs import Encode, Step, Train

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One shape of a job on one device.

    Attributes:
        argument_bytes: Bytes of weights, adapter, optimizer and ids.
        temp_bytes: Peak of the bytes of temporaries.
        needed_bytes: Bytes of arguments, temporaries, results and code.
        flops: FLOP of all matrix products of the program, over the devices.
        cost: Estimated cost; None where the program does not fit.
    """

    step: Step
    argument_bytes: int
    temp_bytes: int
    needed_bytes: int
    flops: float
    output_bytes: int
    cost: cost.Cost | None
    compile_s: float


def slice_mesh(topology: Topology, shape: tuple[int, int]) -> Mesh:
    """Return a mesh over the described devices of a slice.

    Raises: UserError where libtpu is missing, does not know the topology, or describes the two
        cores of its chips one by one (v4), which share memory and run as one device.
    """
    devices = _devices(topology)
    if len(devices) != topology.devices:
        raise UserError(
            f"topology {topology} is described core by core by libtpu: no plan can be made for it; "
            "v5e, v5p, v6e and tpu7x can be planned"
        )
    return make_mesh(shape, devices)


def _devices(topology: Topology) -> Sequence[Any]:
    runtime.compile_for_absent_tpus()
    from jax.experimental import topologies

    # libtpu takes a host to have four chips unless it is given a smaller one.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology.chips == 1 else {}
    try:
        with _quiet():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=str(topology), **host
            ).devices
    except Exception as error:
        reason = str(error).splitlines()[0]
        if importlib.util.find_spec("libtpu") is None:
            reason = (
                'this needs libtpu, in a separate environment: pip install "prompteol-jax[tpu]"'
            )
        raise UserError(f"topology {topology} cannot be described: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide libtpu's lines on the missing TPU, which it writes past Python to standard error."""
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def compile_job(job: Encode | Train, topology: Topology, mesh: Mesh) -> list[Compiled]:
    """Compile every shape of a job."""
    return [compile_step(step, topology, mesh) for step in job.steps(mesh)]


def compile_step(step: Step, topology: Topology, mesh: Mesh) -> Compiled:
    """Compile one shape; for one that does not fit return the bytes that it needs."""
    start = time.perf_counter()
    held = device_bytes(step.arguments)
    if held > topology.chip.hbm_bytes:  # weights alone do not fit: nothing to compile
        return Compiled(step, held, 0, held, 0.0, 0, None, 0.0)
    with _quiet():
        traced = step.trace(mesh)
        flops = matrix_flops(traced.jaxpr.jaxpr) / mesh.size
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _needed(str(error), step.label, held)
            spent = time.perf_counter() - start
            return Compiled(step, held, needed - held, needed, flops, 0, None, spent)
    memory = compiled.memory_analysis()
    coordinates = [tuple(device.coords) for device in mesh.devices.flat]
    estimated = cost.estimate(hlo.parse(compiled.as_text()), topology, coordinates)
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output
    needed += memory.generated_code_size_in_bytes
    spent = time.perf_counter() - start
    return Compiled(step, held, memory.temp_size_in_bytes, needed, flops, output, estimated, spent)


def _needed(message: str, label: str, held: int) -> int:
    """Read the bytes that a program would have needed from the compiler's refusal.

    Raises: UserError where it refused for another reason.
    """
    temporaries = re.search(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    used = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    found = temporaries or used
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        raise UserError(f"{label} does not compile: {message.splitlines()[0]}")
    amount = int(float(found[1]) * _UNITS[found[2]])
    return amount + held if found is temporaries else amount
