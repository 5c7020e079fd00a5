"""Processes: the only file that knows there may be several, one on each host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from prompteol_jax import processes as peers
from prompteol_jax import runtime
from prompteol_jax.errors import UserError
from prompteol_jax.mesh import make_mesh, parse_mesh

_PATIENCE_MS: Final = 3_600_000  # the others may compile, or write a large file


def initialize(
    coordinator: str | None,
    processes: int | None = None,
    process: int | None = None,
    *,
    seconds: float = 300.0,
) -> None:
    """Join the other processes of a run; without a coordinator this process stays alone.

    From then on they end together: see `processes.watch`.

    Args:
        coordinator: HOST:PORT of process 0, or `auto` where the cluster tells every process.
        processes: number of processes, and `process` that of this one; for HOST:PORT only.
        seconds: longest time to wait for the others.
    Raises: UserError where these do not fit together, and where it names the processes that did not
        come in time.
    """
    wrong = peers.problems(coordinator, processes, process)
    if wrong:
        raise UserError("; ".join(wrong))
    if coordinator is None:
        return
    known: dict[str, Any] = {}
    if coordinator != "auto":
        assert processes is not None and process is not None  # or `problems` had named them
        peers.meet(coordinator, processes, process, seconds)
        known = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
    try:
        jax.distributed.initialize(**known, initialization_timeout=max(1, int(seconds)))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--coordinator {coordinator}: could not join: {reason}") from error
    if jax.process_count() > 1:
        host = _jax_state().coordinator_address.rpartition(":")[0].strip("[]")
        exchange = Channel("watch").exchange
        peers.watch(jax.process_index(), jax.process_count(), host, exchange)


class Part(NamedTuple):
    """One of several processes that work independently, each on a mesh over its devices.

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


def work_apart(mesh: str, processes: int | None, join: Callable[[], None] | None) -> Part:
    """Join the other processes, and take this one's share of the `data` axis of their mesh.

    Args:
        processes: number of processes, where it is known before they join.
        join: call of `initialize`; None for a process alone.
    Raises: UserError as `initialize`, and where the processes cannot share that axis.
    """
    if join is None:
        return Part()
    data, model = parse_mesh(mesh)
    runtime.simulate_devices(data * model // (processes or 1))
    join()
    together = jax.process_count()
    if data % together:
        raise UserError(
            f"--mesh {mesh} cannot be shared by {together} processes: each encodes texts of its "
            f"own, so data = {data} must be a multiple of {together}"
        )
    own = make_mesh((data // together, model), jax.local_devices())
    return Part(jax.process_index(), together, own)


def is_primary() -> bool:
    """Say whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when every process has come to this point, called by the same name in all."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def to_global(array: np.ndarray, place: Sharding) -> jax.Array:
    """Put a host array that every process holds whole onto all devices, each its part."""
    if place.is_fully_addressable:
        return jax.device_put(array, place)
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def to_host(array: jax.Array) -> np.ndarray:
    """Fetch a whole array, from all processes where several hold it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@dataclasses.dataclass(frozen=True)
class Share:
    """What this process feeds of a batch that is cut along data.

    Attributes:
        shards: places along data at which it has devices.
        index: which part of the batch it reads, of `count` equal parts; processes with devices at
            the same places read the same one.
    """

    mesh: Mesh
    shards: tuple[int, ...]
    index: int
    count: int

    @classmethod
    def of(cls, mesh: Mesh) -> Share:
        """This process's share; all of the batch where devices are dealt out too unevenly."""
        held: dict[int, set[int]] = {}
        for shard, devices in enumerate(mesh.devices):
            for device in devices:
                held.setdefault(device.process_index, set()).add(shard)
        parts = sorted({tuple(sorted(shards)) for shards in held.values()})
        data = mesh.shape["data"]
        if sum(map(len, parts)) != data or len({len(part) for part in parts}) > 1:
            return cls(mesh, tuple(range(data)), 0, 1)
        mine = tuple(sorted(held[jax.process_index()]))
        return cls(mesh, mine, parts.index(mine), len(parts))

    def to_mesh(self, array: np.ndarray) -> jax.Array:
        """Put the rows of this share onto the mesh, with those of the other processes."""
        place = NamedSharding(self.mesh, PartitionSpec("data"))
        if place.is_fully_addressable:
            return jax.device_put(array, place)
        rows = len(array) // len(self.shards)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # every device has its part
            at = self.shards.index((index[0].start or 0) // rows) * rows
            return array[at : at + rows]

        whole = (rows * self.mesh.shape["data"], *array.shape[1:])
        return jax.make_array_from_callback(whole, place, part)


def _jax_state() -> Any:
    """Return jax's record of its processes, which has no public name: address and shared store."""
    from jax._src.distributed import global_state

    return global_state


class Channel:
    """A conversation of all processes, from host to host: no device waits for it or takes part.

    Args:
        topic: tells it from others; each is used by one thread of every process.
    """

    def __init__(self, topic: str):
        self._topic, self._turn = topic, 0

    def exchange(self, value: Any) -> list[Any]:
        """What every process says in this turn, in their order; anything that JSON can hold."""
        if jax.process_count() == 1:
            return [value]
        store, me = _jax_state().client, jax.process_index()
        name = f"prompteol/{self._topic}/{{}}/{{}}"
        store.key_value_set(name.format(self._turn, me), json.dumps(value))
        told = [
            json.loads(store.blocking_key_value_get(name.format(self._turn, i), _PATIENCE_MS))
            for i in range(jax.process_count())
        ]
        # Whoever speaks in this turn has heard all of the last one.
        if self._turn:
            store.key_value_delete(name.format(self._turn - 1, me))
        self._turn += 1
        return told
