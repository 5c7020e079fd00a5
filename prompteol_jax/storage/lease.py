"""A lease on a folder: one process writes there, a second one is refused by name.

The lease is a file in the folder, `lease.json`, made by an exclusive create, which is atomic on
network file systems and in buckets too. Its holder renews it every few seconds. A lease is stale
where its process is gone from this machine, or where it was not renewed for a minute; a stale lease
is taken over. `lease_record` has what differs between file systems and buckets.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.storage.lease_record import BucketRecord, LocalRecord
from prompteol_jax.storage.paths import AnyPath, is_bucket

BEAT: Final = 10.0  # seconds between two renewals
STALE: Final = 60.0  # seconds without a renewal after which the holder counts as gone


class Lease:
    """The right to write into a folder, held until `release`.

    Raises: UserError that names the holder, where another process holds the folder.
    """

    def __init__(self, folder: AnyPath, what: str):
        self._folder = folder
        self._owner = {**_this_process(), "token": secrets.token_hex(8), "what": what}
        self._record = (BucketRecord if is_bucket(folder) else LocalRecord)(folder, self._owner)
        self._ended = threading.Event()
        self._lost: dict[str, Any] | None = None
        try:
            self._take()
        except BaseException:
            self._record.close()
            raise
        self._beats = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._beats.start()

    @property
    def lost(self) -> bool:
        """Another process took the folder over."""
        return self._lost is not None

    def check(self) -> None:
        """Refuse to write on where another process took the folder over, after a long pause here.

        Raises: UserError that names the new holder.
        """
        if self._lost is not None:
            raise UserError(f"{self._folder} was taken over by {_name(self._lost)}; end here")

    def release(self) -> None:
        """Give the folder up; a second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._beats.join()
        if self._lost is None:
            with contextlib.suppress(OSError):  # it goes stale
                self._record.remove_own()
        self._record.close()

    def _take(self) -> None:
        if not self._record.lock():
            found = self._record.read()
            raise UserError(_refusal(self._folder, found and found[0]))
        seen, since = None, time.monotonic()
        while not self._record.create():
            found = self._record.read()
            if found is None:
                continue  # released in between
            holder, mark = found
            is_here = holder["space"] == self._owner["space"] and isinstance(holder["pid"], int)
            if is_here and _started(holder["pid"]) != holder["started"]:
                self._record.remove(holder, mark)
            elif is_here or seen not in (None, found):
                raise UserError(_refusal(self._folder, holder))
            elif self._record.silence(mark, since) > STALE:
                self._record.remove(holder, mark)
                seen = None
            else:  # on another machine: its next renewal shows that it is alive
                if seen is None:
                    sys.stderr.write(f"{self._folder}: waiting for {_name(holder)} ...\n")
                    seen, since = found, time.monotonic()
                time.sleep(BEAT / 20)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # the folder is away for a moment
                found = self._record.read()
                if found is not None and found[0]["token"] != self._owner["token"]:
                    self._lost = found[0]
                    return
                if found is None:
                    self._record.create()
                self._record.renew()


@contextlib.contextmanager
def held(folder: AnyPath, what: str) -> Iterator[Lease]:
    """Hold a folder that exists, or one of a bucket.

    Args:
        what: name of the work, for the error of others: `a training run`.
    Raises: UserError that names the holder, where another process holds the folder.
    """
    lease = Lease(folder, what)
    try:
        yield lease
    finally:
        lease.release()


def _this_process() -> dict[str, Any]:
    """Return host and process, and what tells them from others of the same name."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "space": _space(),
        "started": _started(os.getpid()),
    }


def _space() -> str:
    """Return what processes that can see each other have in common: boot, and the pids' space."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "" if sys.platform != "linux" and _runs(pid) else None
    return None if fields[0] in "ZX" else fields[19]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _refusal(folder: AnyPath, holder: dict[str, Any] | None) -> str:
    by = "" if holder is None else f": {_name(holder)}"
    return f"another run is writing to {folder}{by}; wait for it or end it"


def _name(holder: dict[str, Any]) -> str:
    what = holder["what"] or "a run"
    return f"{what}, process {holder['pid']} on {holder['host']}"
