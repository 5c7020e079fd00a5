"""Processes: the only file that knows there may be several, one on each host."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Sharding


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run; without an address nothing is joined.

    Args:
        coordinator: HOST:PORT of process 0, or `auto` where the cluster tells every process.
    Raises: ValueError where an address comes without the number of processes or this one's own.
    """
    if coordinator is None:
        return
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    if processes is None or process is None:
        raise ValueError(
            f"--coordinator {coordinator} needs --processes N and --process I (0 to N-1) beside it"
        )
    jax.distributed.initialize(coordinator, processes, process)


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
