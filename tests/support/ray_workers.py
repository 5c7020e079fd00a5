"""`prompteol encode --engine ray` with other workers, or on a cluster whose node is killed.

    python tests/support/ray_workers.py KIND [--nodes 3 2] [--tpus 4] [--kill-after 2] -- FLAGS

KIND says what a worker does with a shard: `real` encodes it; `slow` waits before; `empty` does
nothing; `ends` ends its process at shard 2; `chips` writes which TPU chips it sees into the output.
FLAGS are those of encode; `--tasks` is the most tasks of a run. The last line of standard output is
JSON: seconds, megabytes of the driver, and whether it started a backend of jax.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prompteol_jax.cli import main as cli
from prompteol_jax.scale import engine
from prompteol_jax.scale.worker import Receipt, ShardWorker
from prompteol_jax.storage.corpus import Chunk

POISON = 2  # shard at which a worker ends


class Slow(ShardWorker):
    """Waits before it encodes, so that a kill finds it at work."""

    def _encoded(self, number: int, chunk: Chunk) -> Receipt:
        time.sleep(0.4)
        return super()._encoded(number, chunk)


class Ends(ShardWorker):
    """Ends its process at one shard, as one does that wants too much memory."""

    def _encoded(self, number: int, chunk: Chunk) -> Receipt:
        if number == POISON:
            os._exit(1)
        return super()._encoded(number, chunk)


class Empty(ShardWorker):
    """Does nothing: what is left is the engine and its bookkeeping."""

    def _load(self, platform: str, versions: Any) -> None:
        self._device = "none"

    def _encoded(self, number: int, chunk: Chunk) -> Receipt:
        return self._signed(number, sha256="0" * 64, width=128)


class Chips(Empty):
    """Writes down which chips Ray gave to it, and whether jax was imported before."""

    def _encoded(self, number: int, chunk: Chunk) -> Receipt:
        seen = {name: os.environ.get(name) for name in os.environ if name.startswith("TPU_")}
        seen["jax"] = "jax" in sys.modules
        (self._options.output.parent / f"chips-{os.getpid()}.json").write_text(json.dumps(seen))
        time.sleep(1)  # so that every worker gets a shard
        return super()._encoded(number, chunk)


KINDS = {"real": ShardWorker, "slow": Slow, "empty": Empty, "ends": Ends, "chips": Chips}


@contextlib.contextmanager
def cluster(nodes: list[int], tpus: int, kill_after: int, journal: Path) -> Iterator[list[str]]:
    """Start a cluster of nodes with so many CPUs; the flags that join it.

    Args:
        kill_after: shards that are entered before the last node is killed; 0: never.
    """
    if not nodes:
        yield []
        return
    from ray.cluster_utils import Cluster

    made = Cluster()
    resources = {"TPU": tpus} if tpus else None
    last = [made.add_node(num_cpus=cpus, resources=resources) for cpus in nodes][-1]
    watcher = threading.Thread(target=kill, args=(made, last, kill_after, journal), daemon=True)
    if kill_after:
        watcher.start()
    try:
        yield ["--address", made.address]
    finally:
        made.shutdown()


def kill(made: Any, node: Any, after: int, journal: Path) -> None:
    """Kill a node once it has a worker and so many shards are entered."""
    while entered(journal) < after or not worker_on(node):
        time.sleep(0.02)
    made.remove_node(node, allow_graceful=False)
    sys.stdout.write(f"killed a node with {entered(journal)} shards entered\n")


def entered(journal: Path) -> int:
    """Count the entries of a journal."""
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def worker_on(node: Any) -> bool:
    """Say whether a process of a node encodes."""
    (raylet,) = [one.process for one in node.all_processes["raylet"]]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet.pid and b"MapWorker" in (folder / "cmdline").read_bytes():
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    parser.add_argument("--tpus", type=int, default=0)
    parser.add_argument("--kill-after", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=engine.TASKS)
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    engine.ShardWorker, engine.TASKS = KINDS[options.kind], options.tasks
    output = Path(flags[flags.index("--output") + 1])
    start = time.perf_counter()
    with cluster(options.nodes, options.tpus, options.kill_after, output / "journal.0.jsonl") as at:
        cli.main(["encode", "--engine", "ray", *flags, *at])
    used = resource.getrusage(resource.RUSAGE_SELF)
    said = {"seconds": round(time.perf_counter() - start, 1), "mb": used.ru_maxrss / 1024}
    said |= {"cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "backend": started()}
    sys.stdout.write(f"{json.dumps(said)}\n")


def started() -> bool:
    """Say whether this process has started a backend of jax."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


if __name__ == "__main__":
    main()
