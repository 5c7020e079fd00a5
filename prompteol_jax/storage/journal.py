"""A journal of finished shards: one line each, so that entering a shard costs the same in any run.

On this machine a line is appended and synced. A bucket has no appends: there lines are collected
for some seconds and written as one object. A line that a kill broke off counts for
nothing, and its shard is encoded again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from prompteol_jax.storage import atomic, paths
from prompteol_jax.storage.paths import AnyPath

PATTERN: Final = r"journal(\.\d+){1,2}\.jsonl"
_EVERY: Final = 10.0  # seconds between two objects in a bucket


class Entry(NamedTuple):
    """A finished shard.

    Attributes:
        shard: its number.
        sha256: digest of its file.
        truncated: texts that were cut; None where it is not known.
    """

    shard: int
    sha256: str
    truncated: int | None = None


class ShardJournal:
    """The journal of one process. What was entered before `flush` is not lost.

    Args:
        process: number of the process, which nobody else of the run has.
    """

    def __init__(self, folder: AnyPath, process: int):
        self._folder, self._process = folder, process
        self._lines: list[bytes] = []
        self._written = time.monotonic()

    def enter(self, entry: Entry) -> None:
        """Enter a finished shard.

        Raises: CannotWrite if the disk refuses.
        """
        self._lines.append(json.dumps(entry._asdict()).encode() + b"\n")
        if not paths.is_bucket(self._folder) or time.monotonic() - self._written > _EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what was entered."""
        if not self._lines:
            return
        content = b"".join(self._lines)
        if paths.is_bucket(self._folder):
            there = len(list(self._folder.glob(f"journal.{self._process}.*.jsonl")))
            path = self._folder / f"journal.{self._process}.{there}.jsonl"
            atomic.write_whole(path, lambda file: file.write(content))
        else:
            path = self._folder / f"journal.{self._process}.jsonl"
            with atomic.explained(path), path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self._lines, self._written = [], time.monotonic()


def entries(folder: AnyPath) -> Iterator[Entry]:
    """Yield the shards that any process entered."""
    for path in folder.glob("journal.*.jsonl"):
        for line in path.read_bytes().splitlines():
            found = _entry(line)
            if found is not None:
                yield found


def remove(folder: AnyPath, process: int | None = None) -> None:
    """Remove the journals of all processes, or of one."""
    for pattern in ("*",) if process is None else (f"{process}", f"{process}.*"):
        for path in list(folder.glob(f"journal.{pattern}.jsonl")):
            path.unlink(missing_ok=True)


def _entry(line: bytes) -> Entry | None:
    try:
        found: Any = json.loads(line)
        entry = Entry(found["shard"], found["sha256"], found["truncated"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    is_shard = type(entry.shard) is int and entry.shard >= 0 and isinstance(entry.sha256, str)
    return entry if is_shard and type(entry.truncated) in (int, type(None)) else None
