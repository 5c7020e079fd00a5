"""Ray encodes a corpus: it schedules, places, retries and scales; the manifest remembers.

The driver gives out numbers of shards and takes receipts. Texts and vectors never pass through it:
a worker reads its own texts and writes its own files. A shard is one item, one task and one retry;
of more than 4,096 shards a task has several.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from prompteol_jax import runtime
from prompteol_jax.errors import UserError
from prompteol_jax.progress import progress_bar
from prompteol_jax.scale import options as flags
from prompteol_jax.scale.worker import Receipt, ShardWorker
from prompteol_jax.storage.journal import Entry
from prompteol_jax.storage.shards import Shards

if TYPE_CHECKING:
    from prompteol_jax.cli.encode import EncodeOptions

_RETRIES: Final = 10  # of a shard whose worker ended
_AHEAD: Final = 2  # shards at a worker: those of a lost one wait until it is placed again
TASKS: Final = 4096  # at most: a task costs Ray some 30 ms, with any number of shards
_RESOURCES: Final = {"tpu": "TPU", "gpu": "GPU", "cpu": "CPU"}


def encode_missing(options: EncodeOptions, vectors: Shards) -> list[str]:
    """Encode what a run lacks; return what to say about it.

    Raises: UserError for a cluster without room, and naming the shard that cannot be encoded.
    """
    ray = _import_ray()
    start = time.perf_counter()
    receipts: list[Receipt] = []
    missing = list(vectors.share)
    rows = sum(vectors.chunks[number].rows for number in missing)
    with _cluster(ray, options), progress_bar("encode", rows, None) as advance:
        room = _Room.of(ray, options, len(missing))
        ledger = _ledger_here(ray)
        vectors.begin(vectors.width)
        try:
            for receipt in _receipts(ray, options, vectors, room, ledger):
                _take(receipt, vectors, receipts, mixed=options.mixed_workers)
                advance(vectors.chunks[receipt.number].rows)
        except ray.exceptions.RayError as error:
            raise _explained(ray, error, vectors, ledger) from error
        starts = ray.get(ledger.counts.remote())
    retried = sum(count - 1 for count in starts.values() if count > 1)
    seconds = time.perf_counter() - start
    return [f"{rows} encoded", *_counted(receipts, rows / seconds, retried)]


class _Ledger:
    """Counts how often each shard was started."""

    def __init__(self) -> None:
        self._counts: collections.Counter[int] = collections.Counter()

    def start(self, number: int) -> None:
        """Count a start."""
        self._counts[number] += 1

    def counts(self) -> dict[int, int]:
        """Return the starts by shard."""
        return dict(self._counts)


def _ledger_here(ray: Any) -> Any:
    """Start a ledger on the driver's node: the loss of any other node must not end the run."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Ledger).remote()


class _Started:
    """Notes a start in the ledger before a worker may end at it."""

    def __init__(self, ledger: Any):
        self._ledger = ledger

    def __call__(self, number: int) -> None:
        import ray

        ray.get(self._ledger.start.remote(number))


class _Room:
    """What a worker asks for, and how many of them there are.

    Attributes:
        platform: of their devices.
        asked: arguments of Ray for one worker.
        least, most: number of workers.
    """

    def __init__(self, platform: str, asked: dict[str, Any], least: int, most: int):
        self.platform, self.asked, self.least, self.most = platform, asked, least, most

    @classmethod
    def of(cls, ray: Any, options: EncodeOptions, shards: int) -> _Room:
        """Find room for the workers in a cluster.

        Raises: UserError where no node has room for one, or the cluster none for all.
        """
        from prompteol_jax.mesh import parse_mesh

        data, model = parse_mesh(options.mesh)
        devices = data * model
        there = ray.cluster_resources()
        platform = options.device
        if platform == "auto":
            platform = next((p for p, name in _RESOURCES.items() if there.get(name)), "cpu")
        name, each = _RESOURCES[platform], devices if platform != "cpu" else 1
        if platform == "tpu" and devices not in flags.TPU_CHIPS:
            places = ", ".join(map(str, flags.TPU_CHIPS))
            raise UserError(
                f"--mesh {options.mesh} asks for {devices} TPU chips a worker; Ray places {places}"
            )
        nodes = [node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]]
        if max(nodes, default=0) < each:
            raise UserError(
                f"no node of the cluster has {each} {name} (the largest: {max(nodes, default=0):g})"
                "; give a smaller --mesh"
            )
        fit = sum(int(number // each) for number in nodes)
        if platform == "cpu":
            fit -= 1  # one for reading
        least, most = flags.pool(options.workers or str(max(1, min(fit, shards)))) or (1, 1)
        if least > fit:
            one_more = "; one CPU more is needed for reading" if platform == "cpu" else ""
            raise UserError(
                f"--workers {options.workers or least} needs more than the {sum(nodes):g} {name} "
                f"of the cluster{one_more}: at most {fit} fit"
            )
        asked: dict[str, Any] = {"num_cpus": 1}
        if platform == "gpu":
            asked["num_gpus"] = devices
        if platform == "tpu":
            asked["resources"] = {"TPU": devices}
        return cls(platform, asked, least, most)


def _import_ray() -> Any:
    runtime.keep_ray_quiet()
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UserError('--engine ray needs Ray: pip install "prompteol-jax[ray]"') from error
    return ray


@contextlib.contextmanager
def _cluster(ray: Any, options: EncodeOptions) -> Iterator[None]:
    """Join a cluster, or start one here with a processor for each worker and one for reading."""
    address = options.address or os.environ.get("RAY_ADDRESS")
    how: dict[str, Any] = dict(log_to_driver=False, logging_level="ERROR")
    if address:
        how["address"] = address
    else:
        workers = flags.pool(options.workers or "1") or (1, 1)
        how |= dict(num_cpus=max(workers[1] + 1, os.cpu_count() or 1), include_dashboard=False)
    try:
        ray.init(**how)
    except Exception as error:  # a machine under load makes Ray raise just that
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"Ray at {address or 'this machine'} cannot be used: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _receipts(
    ray: Any, options: EncodeOptions, vectors: Shards, room: _Room, ledger: Any
) -> Iterator[Receipt]:
    """Let workers encode the missing shards; yield receipts as they come."""
    from prompteol_jax.pretrained import provenance

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray names no other argument for the bound of retries.
    warnings.filterwarnings("ignore", message=".*ray_remote_args")
    items = [{"shard": json.dumps([n, *vectors.chunks[n]])} for n in vectors.share]
    tasks = math.ceil(len(items) / math.ceil(len(items) / TASKS))
    encoded = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
        ShardWorker,
        fn_constructor_args=(options, room.platform, provenance.versions(), _Started(ledger)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=room.least, max_size=room.most, max_tasks_in_flight_per_actor=_AHEAD
        ),
        max_task_retries=_RETRIES,  # without end by default: a shard can end every worker
        **room.asked,
    )
    for row in encoded.iter_rows():
        yield Receipt(*json.loads(row["receipt"]))


def _take(receipt: Receipt, vectors: Shards, receipts: list[Receipt], *, mixed: bool) -> None:
    """Enter a shard.

    Raises: UserError for a shard that could not be encoded, and for another kind of device.
    """
    chunk = vectors.chunks[receipt.number]
    if receipt.error:
        where = f"shard {receipt.number:05d} ({chunk.file or 'the input'}, {chunk.rows} texts)"
        raise UserError(f"{where}: {receipt.error}")
    devices = sorted({receipt.device, *(one.device for one in receipts)})
    if len(devices) > 1 and not mixed:
        raise UserError(
            f"workers run on {' and '.join(devices)}: vectors would differ by rounding; "
            "--mixed-workers allows it"
        )
    vectors.enter(Entry(receipt.number, receipt.sha256, receipt.truncated), receipt.width)
    receipts.append(receipt)


def _explained(ray: Any, error: Exception, vectors: Shards, ledger: Any) -> Exception:
    """Return an error that names the shard that ended its worker again and again, if one did."""
    starts: dict[int, int] = {}
    with contextlib.suppress(ray.exceptions.RayError):
        starts = ray.get(ledger.counts.remote())
    # A task begins again at its first shard, so of those started most the last one ended it.
    worst = max(vectors.missing, key=lambda number: (starts.get(number, 0), number))
    if starts.get(worst, 0) <= _RETRIES:
        return error
    chunk = vectors.chunks[worst]
    kept = len(vectors.chunks) - len(vectors.missing)
    return UserError(
        f"shard {worst:05d} ({chunk.file or 'the input'}, {chunk.rows} texts) ended its worker "
        f"{starts[worst]} times, likely for want of memory; {kept} shards are kept"
    )


def _counted(receipts: Sequence[Receipt], rate: float, retried: int) -> list[str]:
    waited, seconds = (
        sum(getattr(one, name) for one in receipts) for name in ("waited", "seconds")
    )
    return [
        f"{sum(one.distinct for one in receipts)} of them distinct within their shards",
        f"{sum(one.truncated for one in receipts)} cut",
        f"{rate:,.1f} sentences/s",
        f"the device waited {100 * waited / max(seconds, 1e-9):.1f} % of the time",
        f"{seconds:,.1f} s of encoding by {len({one.worker for one in receipts})} workers",
        f"{retried} shards retried",
    ]
