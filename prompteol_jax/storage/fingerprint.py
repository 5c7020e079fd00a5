"""Files known by their content: SHA-256 of whole files, read once a machine while unchanged.

A sample would not do: an edited layer, a merged adapter or a new token changes a few tensors of a
file, or a few rows of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from prompteol_jax import runtime
from prompteol_jax.storage import atomic

_LARGE: Final = 1 << 26  # bytes from which on a digest is worth a file of the cache
_SETTLED: Final = 2.0  # seconds; a file that changed later may change again within one clock tick
_KNOWN: Final[dict[tuple, str]] = {}


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256.

    A file is read again if its path, size, inode or a time of change differ. Digests of large files
    are kept in the user's cache folder.
    """
    state = _state(path)
    if state not in _KNOWN:
        stored = _stored(state) if state[1] >= _LARGE else None
        found = _load(stored)
        if found is None:
            found = atomic.sha256(path)
            if stored is not None and _state(path) == state:
                _store(stored, found, changed=state[-1])
        _KNOWN[state] = found
    return _KNOWN[state]


def files_sha256(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of those of the files that exist, by file name."""
    there = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(file_sha256, there))
    return {path.name: digest for path, digest in zip(there, digests, strict=True)}


def _state(path: Path) -> tuple:
    real = path.resolve()
    facts = real.stat()
    inode = (facts.st_dev, facts.st_ino)
    return (str(real), facts.st_size, *inode, facts.st_mtime_ns, facts.st_ctime_ns)


def _stored(state: tuple) -> Path:
    name = hashlib.sha256(repr(state).encode("utf-8", "surrogatepass")).hexdigest()
    return runtime.cache_folder() / "digests" / name[:32]


def _load(stored: Path | None) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        text = stored.read_text(encoding="ascii") if stored else ""
        if len(bytes.fromhex(text)) == hashlib.sha256().digest_size:
            return text
    return None


def _store(stored: Path, digest: str, *, changed: int) -> None:
    if time.time() - changed / 1e9 < _SETTLED:
        return
    with contextlib.suppress(OSError):  # a cache that cannot be written is no error
        stored.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_whole(stored, lambda file: file.write(digest.encode()))
