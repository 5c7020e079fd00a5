"""Where a lease is kept: a file of a folder, or an object of a bucket.

Both have an exclusive create, a mark that each renewal changes, and a removal of exactly the lease
that was seen to be stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.storage import json_files, paths
from prompteol_jax.storage.paths import AnyPath

NAME: Final = "lease.json"
_FIELDS: Final = ("host", "pid", "space", "started", "token", "what")


class LocalRecord:
    """A file. A renewal changes its time, which is compared by the clock of the file system.

    On one machine `flock` keeps two processes from taking the same folder at the same moment.
    """

    def __init__(self, folder: AnyPath, owner: Mapping[str, Any]):
        self._folder, self._owner = Path(folder), owner
        self._path = self._folder / NAME
        self._descriptor = os.open(self._folder, os.O_RDONLY)

    def lock(self) -> bool:
        """Return whether no other process of this machine is at work in the folder."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without it; the lease remains
        return True

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._descriptor)

    def create(self) -> bool:
        """Write the lease, if there is none."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(_content(self._owner))
            file.flush()
            os.fsync(descriptor)
        return True

    def read(self) -> tuple[dict[str, Any], Any] | None:
        """Return the holder and a mark that each renewal changes; None where there is no lease."""
        try:
            with self._path.open("rb") as file:
                return _holder(file.read()), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def silence(self, mark: Any, since: float) -> float:
        """Return the seconds since the renewal that left a mark.

        Args:
            since: time of this process's clock at which the mark was seen first.
        """
        probe = self._path.with_name(f"{NAME}.{secrets.token_hex(8)}")
        try:
            probe.touch()
            return max(probe.stat().st_mtime - mark / 1e9, time.monotonic() - since)
        finally:
            probe.unlink(missing_ok=True)

    def renew(self) -> None:
        """Show that the holder is alive. Raises: OSError where the folder is away."""
        os.utime(self._path)

    def remove(self, holder: Mapping[str, Any], mark: Any) -> None:
        """Remove a stale lease; of several processes that try, one does it."""
        taken = self._path.with_name(f"{NAME}.{secrets.token_hex(8)}")
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(taken)
            if _holder(taken.read_bytes()) == holder:
                taken.unlink()
            else:  # another process was faster, and this is its lease
                taken.rename(self._path)

    def remove_own(self) -> None:
        """Remove the lease at the end of the work."""
        self._path.unlink(missing_ok=True)


class BucketRecord:
    """An object. A renewal changes its metageneration; every change names the one it replaces."""

    def __init__(self, folder: AnyPath, owner: Mapping[str, Any]):
        self._path, self._owner = folder / NAME, owner

    def lock(self) -> bool:
        """Return True: a bucket has no lock besides the lease."""
        return True

    def close(self) -> None:
        """Do nothing: there is no lock."""

    def create(self) -> bool:
        """Write the lease, if there is none; see `LocalRecord`."""
        if paths.create_object(self._path, _content(self._owner)):
            return True
        found = self.read()  # perhaps of ours, where the first answer was lost on its way
        return found is not None and found[0]["token"] == self._owner["token"]

    def read(self) -> tuple[dict[str, Any], Any] | None:
        """Return the holder and the object's version; None where there is no lease."""
        found = paths.read_object(self._path)
        return None if found is None else (_holder(found.content), found.version)

    def silence(self, mark: Any, since: float) -> float:
        """Return the seconds for which this process has seen no renewal."""
        return time.monotonic() - since

    def renew(self) -> None:
        """Show that the holder is alive. Raises: OSError where the bucket is away."""
        found = self.read()
        if found is not None and found[0]["token"] == self._owner["token"]:
            paths.touch_object(self._path, found[1])

    def remove(self, holder: Mapping[str, Any], mark: Any) -> None:
        """Remove a stale lease, unless it was renewed or replaced meanwhile."""
        paths.remove_object(self._path, mark)

    def remove_own(self) -> None:
        """Remove the lease at the end of the work."""
        found = self.read()
        if found is not None and found[0]["token"] == self._owner["token"]:
            paths.remove_object(self._path, found[1])


def _content(owner: Mapping[str, Any]) -> bytes:
    return (json.dumps(owner) + "\n").encode()


def _holder(content: bytes) -> dict[str, Any]:
    """Return who holds a lease; a holder without a name where it is half written, or not ours."""
    holder: dict[str, Any] = dict.fromkeys(_FIELDS)
    with contextlib.suppress(UserError):
        holder |= json_files.parse_object(content[: json_files.LIMIT], NAME)
    return holder
