"""A lease on a folder: one process writes there, a second one is refused by name.

The lease is a file in the folder, `lease.json`, made by an exclusive create, which is atomic on
network file systems too. Its holder renews its time of change every few seconds. A lease is stale
where its process is gone from this machine, or where it was not renewed for a minute by the clock
of the file system; a stale lease is taken over. On one machine `flock` keeps two processes from
taking the same folder at the same moment.

A bucket has no exclusive create that all its clients share: there `held` does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
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
from prompteol_jax.storage import paths

NAME: Final = "lease.json"
BEAT: Final = 10.0  # seconds between two renewals
STALE: Final = 60.0  # seconds without a renewal after which the holder counts as gone


class Lease:
    """The right to write into a folder, held until `release`.

    Raises: UserError that names the holder, where another process holds the folder.
    """

    def __init__(self, folder: Path, what: str):
        self._path = folder / NAME
        self._owner = {**_this_process(), "token": secrets.token_hex(8), "what": what}
        self._flock = _flock(folder, self._path)
        self._ended = threading.Event()
        self._lost: dict[str, Any] | None = None
        try:
            self._take()
        except BaseException:
            os.close(self._flock)
            raise
        self._beats = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._beats.start()

    def check(self) -> None:
        """Refuse to write on where another process took the folder over, after a long pause here.

        Raises: UserError that names the new holder.
        """
        if self._lost is not None:
            raise UserError(f"{self._path.parent} was taken over by {_name(self._lost)}; end here")

    def release(self) -> None:
        """Give the folder up; a second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._beats.join()
        if self._lost is None:
            self._path.unlink(missing_ok=True)
        os.close(self._flock)

    def _take(self) -> None:
        seen, said = None, False
        while not _create(self._path, self._owner):
            holder = _read(self._path)
            if holder is None:
                continue  # released in between
            age = _age(self._path)
            if seen is None:
                seen = (holder, age)
            if _is_gone(holder, age):
                _remove_stale(self._path, holder)
                seen = None
            elif holder["space"] == self._owner["space"] or seen[0] != holder or age < seen[1]:
                raise UserError(_refusal(self._path.parent, holder))
            else:  # on another machine: its next renewal shows that it is alive
                if not said:
                    sys.stderr.write(f"{self._path.parent}: waiting for {_name(holder)} ...\n")
                    said = True
                seen = (holder, age)
                time.sleep(BEAT / 20)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            holder = _read(self._path)
            if holder is not None and holder["token"] != self._owner["token"]:
                self._lost = holder
                return
            with contextlib.suppress(OSError):  # the folder is away for a moment
                if holder is None:
                    _create(self._path, self._owner)
                os.utime(self._path)


@contextlib.contextmanager
def held(folder: Any, what: str) -> Iterator[Lease | None]:
    """Hold a folder that exists; None for a bucket, which cannot be held.

    Args:
        what: name of the work, for the error of others: `a training run`.
    Raises: UserError that names the holder, where another process holds the folder.
    """
    if paths.is_bucket(folder):
        yield None
        return
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


def _flock(folder: Path, lease: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(_refusal(folder, _read(lease))) from None
    except OSError:
        pass  # a file system without it; the lease remains
    return descriptor


def _create(path: Path, owner: dict[str, Any]) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(owner) + "\n")
        file.flush()
        os.fsync(descriptor)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Return the holder; one without a name where the file is being written; None without file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    holder: dict[str, Any] = dict.fromkeys(("host", "pid", "space", "started", "token", "what"))
    with contextlib.suppress(ValueError, TypeError):  # half written, or not ours
        holder |= json.loads(content)
    return holder


def _age(path: Path) -> float:
    """Return the seconds since the last renewal, by the clock of the file system."""
    probe = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _is_gone(holder: dict[str, Any], age: float) -> bool:
    if holder["space"] == _space() and isinstance(holder["pid"], int):
        return _started(holder["pid"]) != holder["started"]
    return age > STALE


def _remove_stale(path: Path, holder: dict[str, Any]) -> None:
    """Remove a stale lease; of several processes that try, one does it."""
    taken = path.with_name(f"{NAME}.{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(taken)
        if _read(taken) == holder:
            taken.unlink()
        else:  # another process was faster, and this is its lease
            taken.rename(path)


def _refusal(folder: Path, holder: dict[str, Any] | None) -> str:
    by = "" if holder is None else f": {_name(holder)}"
    return f"another run is writing to {folder}{by}; wait for it or end it"


def _name(holder: dict[str, Any]) -> str:
    what = holder["what"] or "a run"
    return f"{what}, process {holder['pid']} on {holder['host']}"
