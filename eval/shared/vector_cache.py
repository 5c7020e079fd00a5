"""Vectors on disk, by the content of their texts and everything that decides a vector.

An evaluation that was interrupted, or that shares texts with an earlier one, encodes only what is
missing. Vectors are kept of the plan `fixed`, which gives the same bits in any company of texts,
and of weights that come from files. A folder per fingerprint holds files of some thousand vectors:

    FOLDER/FINGERPRINT/NAME.npz     digests [n, 32], uint8; vectors [n, D], float32

The least recently used folders are removed beyond `LIMIT` bytes.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from prompteol_jax import runtime
from prompteol_jax.pretrained import provenance
from prompteol_jax.progress import progress_bar
from prompteol_jax.storage import atomic, paths

LIMIT: Final = 4 * 2**30  # bytes of all folders
CHUNK: Final = 4096  # texts whose vectors are written together: what an interruption may lose
_log = logging.getLogger("eval")


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Flags of the commands that keep vectors."""

    cache: Path | None = None
    """Folder that keeps vectors by content, at most 4 GiB, for interrupted and later runs; in the
    user's cache folder by default."""
    no_cache: bool = False
    """Encode every text, and keep no vector."""

    def cached(self, embedder: Any) -> Any:
        """Return an encoder that keeps vectors, or the embedder where they cannot be kept."""
        described = {} if self.no_cache else embedder.describe()
        paths.refuse_buckets(self.cache)
        is_exact = str(described.get("plan", "")).startswith("fixed")
        if not is_exact or not described["model"]["files"]:
            return embedder
        folder = self.cache or runtime.cache_folder() / "vectors"
        return CachedEncoder(embedder, folder / provenance.digest(described))


class CachedEncoder:
    """An encoder that looks vectors up in a folder, and encodes and writes those that are missing.

    Attributes:
        found: Number of vectors that came from the folder.
    """

    def __init__(self, embedder: Any, folder: Path):
        self._embedder, self._folder = embedder, folder
        self._writes = True
        self.found = 0

    def encode(
        self, texts: Sequence[str], progress: bool | None = None
    ) -> Float[np.ndarray, "n D"]:
        """Return the vectors of `Embedder.encode`, bit for bit."""
        rows: dict[str, int] = {}
        index = [rows.setdefault(text, len(rows)) for text in texts]
        distinct = list(rows)
        digests = [_digest(text) for text in distinct]
        vectors = np.empty((len(distinct), self._embedder.width), np.float32)
        missing = self._look_up(digests, vectors)
        found = len(distinct) - len(missing)
        self.found += found
        if found:
            _log.warning(
                "%d of %d vectors are of an earlier run, from %s; --no-cache encodes all again",
                *(found, len(distinct), self._folder.parent),
            )
        # Texts of like length share their batches, so that chunks hardly add any padding.
        missing.sort(key=lambda row: len(distinct[row]))
        with progress_bar("encode", len(missing), progress) as advance:
            for start in range(0, len(missing), CHUNK):
                part = missing[start : start + CHUNK]
                chosen = [distinct[row] for row in part]
                vectors[part] = self._embedder.encode(chosen, progress=advance)
                self._write([digests[row] for row in part], vectors[part])
        return vectors[np.asarray(index, np.int64)]

    def _look_up(self, digests: Sequence[bytes], vectors: np.ndarray) -> list[int]:
        """Fill in the vectors that the folder holds, and return the rows of the others."""
        missing = {digest: row for row, digest in enumerate(digests)}
        for path in sorted(self._folder.glob("*.npz")):
            for digest, vector in _read(path, missing, vectors.shape[1]):
                vectors[missing.pop(digest)] = vector
        return list(missing.values())

    def _write(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Write vectors as one more file; a disk that refuses ends the keeping, not the work."""
        if not self._writes:
            return
        table = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 32)
        name = hashlib.sha256(table.tobytes()).hexdigest()[:32]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic.write_whole(
                self._folder / f"{name}.npz",
                lambda file: np.savez(file, digests=table, vectors=vectors),
            )
            self._writes = _make_room(self._folder)
        except OSError as error:
            self._writes = False
            _log.warning("vectors are not kept: %s", error)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _read(path: Path, wanted: Mapping[bytes, int], width: int) -> list[tuple[bytes, np.ndarray]]:
    """Return the wanted vectors of a file; none of a file that is damaged or gone by now."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            digests = [row.tobytes() for row in held["digests"]]
            rows = [row for row, digest in enumerate(digests) if digest in wanted]
            if not rows:
                return []
            vectors = held["vectors"]
            if vectors.shape != (len(digests), width) or vectors.dtype != np.float32:
                return []
            return [(digests[row], vectors[row]) for row in rows]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return []


def _make_room(current: Path) -> bool:
    """Remove the folders that were used longest ago; False where the current one is too large."""
    current.touch()
    sizes = {
        folder: sum(path.stat().st_size for path in folder.glob("*.npz"))
        for folder in sorted(current.parent.iterdir(), key=lambda folder: folder.stat().st_mtime)
        if folder.is_dir()
    }
    total = sum(sizes.values())
    for folder, size in sizes.items():
        if total > LIMIT and folder != current:
            shutil.rmtree(folder, ignore_errors=True)
            total -= size
    return sizes.get(current, 0) <= LIMIT
