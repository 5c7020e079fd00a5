"""Processes: the only file that knows there may be several, one on each host."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from prompteol_jax import axes


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run; without an address nothing is joined.

    Args:
        coordinator: HOST:PORT of process 0, or `auto` where the cluster tells every process.
    Raises: ValueError where an address comes without the number of processes or this one's own, or
        these without an address.
    """
    if coordinator in (None, "auto"):
        if processes is not None or process is not None:
            raise ValueError("--processes and --process need --coordinator HOST:PORT beside them")
        if coordinator == "auto":
            jax.distributed.initialize()
        return
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"--coordinator {coordinator} needs --processes N and --process I (0 to N-1) beside it"
        )
    jax.distributed.initialize(coordinator, processes, process)


class Part(NamedTuple):
    """One of several processes that work apart, each on a mesh of its own devices.

    Attributes:
        mesh: None for a process alone, which chooses its devices when it needs them.
    """

    process: int = 0
    processes: int = 1
    mesh: Mesh | None = None

    def wait(self, name: str) -> None:
        """Return when every process has come to this point."""
        if self.processes > 1:
            wait_for_all(name)


def work_apart(
    mesh: str, coordinator: str | None, processes: int | None, process: int | None
) -> Part:
    """Join the other processes, and take this one's share of the `data` axis of their mesh.

    Raises: ValueError as `initialize`, and where the processes cannot share that axis.
    """
    data, model = axes.parse_mesh(mesh)
    if coordinator is not None:
        simulate_devices(data * model // (processes or 1))
    initialize(coordinator, processes, process)
    if coordinator is None:
        return Part()
    together = jax.process_count()
    if data % together:
        raise ValueError(
            f"--mesh {mesh} cannot be shared by {together} processes: each encodes texts of its "
            f"own, so data = {data} must be a multiple of {together}"
        )
    own = axes.make_mesh((data // together, model), jax.local_devices())
    return Part(jax.process_index(), together, own)


def is_primary() -> bool:
    """Say whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when every process has come to this point, called by the same name in all."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def simulate_devices(devices: int) -> None:
    """Let the CPU stand for this many devices, if jax has not started and finds nothing else."""
    if devices < 2:
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # jax runs already, with the devices it has
        return


def to_global(array: np.ndarray, place: Sharding) -> jax.Array:
    """Put a host array that every process holds whole onto all devices, each its part."""
    if place.is_fully_addressable:
        return jax.device_put(array, place)
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def to_host(array: jax.Array) -> np.ndarray:
    """Fetch an array whole, from all processes where it lies on several."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
