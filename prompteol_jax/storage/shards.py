"""Vectors as a folder of shards that survives a kill.

The manifest says what the vectors are made of and which shards are done. A shard is written whole
and then entered in a journal with its SHA-256; the manifest takes the journal in at the end of a
run, and at the start of the next one. A shard that neither holds is encoded again, so no row is
lost and none occurs twice.

One run writes into a folder at a time, here or in a bucket (`lease`).

Each of several processes writes its share of the shards and its own journal. The first one takes
these into the manifest at the end, or at the start of the next run, which may have more or fewer
processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32

from prompteol_jax.errors import AlreadyExists, UserError, listed
from prompteol_jax.storage import atomic, journal, json_files, lease, lease_record, paths, same_work
from prompteol_jax.storage.arrays import read_array, write_array
from prompteol_jax.storage.corpus import Chunk
from prompteol_jax.storage.journal import Entry
from prompteol_jax.storage.paths import AnyPath

MANIFEST: Final = "manifest.json"
MOST: Final = 2**16  # shards of a run: the manifest stays below what is read of a JSON file
_OURS: Final = re.compile(
    rf"(manifest(\.\d+)?\.json|{journal.PATTERN}|shard-\d{{5,}}\.npy|joined)(\.[0-9a-f]{{8}}\.new)?"
)
_LEASE: Final = re.compile(rf"{re.escape(lease_record.NAME)}(\.[0-9a-f]+)?")
_POLL: Final = 0.5  # seconds between two looks for what other processes did
_NAMES: Final = ("model", "template")  # settings that only name what others hold
_ADVICE: Final = "Repeat that run's settings, give another output, or replace it with --overwrite"


@dataclasses.dataclass
class Shards:
    """A run's shards; `opened` makes one.

    Attributes:
        settings: values that decide the vectors, by name.
        chunks: the texts of each shard.
        sha256: of each finished shard's file, None for those still missing.
        truncated: texts of each shard that were cut, None where it is missing or not known.
        width: numbers in a vector; None before it is known.
        damaged: shards that were found missing or changed and are missing now.
        process: which of the processes of this run this is.
        share: numbers of the missing shards that this process writes.
        held: right to write into the folder; None in processes but the first.
        computed: how this run computes: what changes the rounding of vectors only.
        is_new: the folder holds no run that this one continues.
    """

    folder: AnyPath
    settings: Mapping[str, Any]
    chunks: Sequence[Chunk]
    sha256: list[str | None]
    truncated: list[int | None]
    width: int | None = None
    damaged: int = 0
    process: int = 0
    share: Sequence[int] = ()
    held: lease.Lease | None = None
    computed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_new: bool = True
    _journal: journal.ShardJournal | None = None

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards still to be written."""
        return [number for number, digest in enumerate(self.sha256) if digest is None]

    @property
    def dtype(self) -> str:
        """Dtype of the vectors in the files."""
        return self.settings.get("output_dtype", "float32")

    def begin(self, width: int | None) -> None:
        """Replace what the folder held before by a new run; continue a resumed one.

        Args:
            width: numbers in a vector; None where the first shard will tell.
        Raises: UserError if vectors of another width are there.
        """
        self._check_width(width)
        if self.process == 0 and self.is_new:
            self._clear()
        self.width = width or self.width
        self._journal = journal.ShardJournal(self.folder, self.process)
        if self.process == 0:
            self._take_in_all()

    def end(self) -> None:
        """Leave what was entered in the manifest, or in the journal of another process."""
        if self._journal is None:
            return
        self._journal.flush()
        self._journal = None
        if self.process == 0 and not (self.held and self.held.lost):
            self._write_manifest()
            journal.remove(self.folder, self.process)

    def _check_width(self, width: int | None) -> None:
        if width is not None and self.width not in (None, width):
            raise UserError(
                f"{self.folder} holds vectors of {self.width} numbers, the model gives {width}; "
                "give another output"
            )

    def gather(self) -> None:
        """Wait until all processes are done, then enter their shards, read again and checked.

        Raises: UserError where some are not to be found.
        """
        if self._journal is not None:
            self._journal.flush()
        while not all(_entered(self.folder)[0]):
            time.sleep(_POLL)
        found = _resumed(self.folder, self.settings, self.chunks, overwrite=False)
        self.sha256, self.truncated = found.sha256, found.truncated
        self._take_in_all()
        if self.missing:
            raise UserError(
                f"{len(self.missing)} of {len(self.chunks)} shards in {self.folder} are not what "
                "their process wrote; every process must see the same folder. Repeat the command"
            )

    def wait_for_first(self, *, removed: bool) -> None:
        """Return when the first process has entered all shards, or also joined and removed them.

        It is the folder that tells: a collective would give up after half an hour.
        """
        with contextlib.suppress(FileNotFoundError):
            while removed or not all(_digests(self.folder / MANIFEST)):
                (self.folder / MANIFEST).stat()
                time.sleep(_POLL)

    def write(
        self, number: int, vectors: Float32[np.ndarray, "n D"], truncated: int | None = None
    ) -> None:
        """Write one shard and enter it.

        Args:
            truncated: texts that were cut.
        Raises: CannotWrite if the disk refuses; what was written before stays good.
        """
        self._check_held()
        expected = (self.chunks[number].rows, self.width)
        if vectors.shape != expected:
            raise UserError(f"shard {number} needs {expected} numbers, got {vectors.shape}")
        sha256 = write_shard(self.folder, number, vectors, self.dtype)
        self.enter(Entry(number, sha256, truncated), self.width)

    def enter(self, entry: Entry, width: int | None) -> None:
        """Enter a shard that was written whole, here or by a worker, with numbers in a vector.

        Raises: UserError where it has another width than those before; CannotWrite.
        """
        self._check_held()
        self._check_width(width)
        assert self._journal is not None  # after `begin`, before `end`
        if self.width is None:
            self.width = width
            self._write_manifest()
        self.sha256[entry.shard], self.truncated[entry.shard] = entry.sha256, entry.truncated
        self._journal.enter(entry)

    def _check_held(self) -> None:
        if self.held is not None:
            self.held.check()

    def read(self, number: int) -> Float[np.ndarray, "n D"]:
        """The vectors of one shard."""
        assert self.width is not None  # `begin`, or the manifest, has set it
        shape = (self.chunks[number].rows, self.width)
        return read_array(self.folder / shard_name(number), shape, self.dtype)

    def remove(self) -> None:
        """Remove the shards and their folder."""
        if self._journal is not None:
            self._journal.flush()
            self._journal = None
        self._clear()
        if self.held is not None:
            self.held.release()
        if not paths.is_bucket(self.folder):
            self.folder.rmdir()

    def _clear(self) -> None:
        # The manifest goes first: without it the other files mean nothing.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for name in filter(_OURS.fullmatch, paths.files(self.folder)):
            (self.folder / name).unlink()

    def _write_manifest(self) -> None:
        """Write the manifest with all that this process knows of."""
        shards = [
            {"file": shard_name(n), "rows": chunk.rows, "truncated": cut}
            | {"input_sha256": chunk.sha256, "sha256": sha256}
            | ({"input_file": chunk.file} if chunk.file else {})
            for n, (chunk, sha256, cut) in enumerate(
                zip(self.chunks, self.sha256, self.truncated, strict=True)
            )
        ]
        content = {
            "settings": dict(self.settings),
            "computed": dict(self.computed),
            "rows": self.rows,
            "width": self.width,
            "shards": shards,
        }
        json_files.write_object(self.folder / MANIFEST, content)

    def _take_in_all(self) -> None:
        """Write the manifest, and remove the journals whose entries it has."""
        self._write_manifest()
        journal.remove(self.folder)
        for path in self.folder.glob("manifest.*.json"):  # of several processes, before journals
            path.unlink()


@contextlib.contextmanager
def opened(
    folder: AnyPath,
    settings: Mapping[str, Any],
    chunks: Sequence[Chunk],
    *,
    overwrite: bool,
    process: int = 0,
    processes: int = 1,
    computed: Mapping[str, Any] | None = None,
) -> Iterator[Shards]:
    """Find what a folder holds of a run, or start one there; refuse other runs meanwhile.

    Args:
        overwrite: vectors of other settings or texts may be replaced.
        process: which of `processes` this is; the first holds the folder for all.
        computed: settings that change the rounding of vectors only, for the manifest.
    Raises: UserError naming each setting that differs, or that another run writes there;
        FileExistsError where the folder holds files of others.
    """
    if len(chunks) > MOST:
        rows = -(-sum(chunk.rows for chunk in chunks) // MOST)
        raise UserError(f"{len(chunks)} shards are more than {MOST}; give --shard-rows {rows}")
    with _held(folder, is_first=process == 0) as held:
        foreign = [name for name in paths.files(folder) if not _is_ours(name)]
        if foreign:
            raise AlreadyExists(
                f"folder {folder} holds other files ({listed(foreign, 5)}); "
                "give a new folder or an empty one"
            )
        found = _resumed(folder, settings, chunks, overwrite=overwrite)
        share = found.missing[process::processes]
        more = dict(process=process, share=share, held=held, computed=computed or {})
        run = dataclasses.replace(found, **more)
        try:
            yield run
        finally:
            run.end()


@contextlib.contextmanager
def _held(folder: AnyPath, *, is_first: bool) -> Iterator[lease.Lease | None]:
    """Make the folder, hold it in the first process, and remove it if nothing came into it."""
    is_new = not paths.is_bucket(folder) and not folder.exists()
    with atomic.explained(folder):
        folder.mkdir(exist_ok=True)
    if not is_first:
        yield None
        return
    try:
        with lease.held(folder, "prompteol encode") as held:
            yield held
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something, or is gone already
                folder.rmdir()


def _is_ours(name: str) -> bool:
    return bool(_OURS.fullmatch(name) or _LEASE.fullmatch(name))


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.npy"


def write_shard(
    folder: AnyPath, number: int, vectors: Float32[np.ndarray, "n D"], dtype: str
) -> str:
    """Write the file of a shard whole, and return its SHA-256. Several may write the same one.

    Raises: CannotWrite if the disk refuses; NotFinite where a number is too large for the dtype.
    """
    path = folder / shard_name(number)
    write_array(path, vectors, dtype)
    return atomic.sha256(path)


def _resumed(
    folder: AnyPath, settings: Mapping[str, Any], chunks: Sequence[Chunk], *, overwrite: bool
) -> Shards:
    fresh = Shards(folder, settings, chunks, [None] * len(chunks), [None] * len(chunks))
    if not (folder / MANIFEST).exists():
        return fresh
    try:
        found = json_files.read_object(folder / MANIFEST)
        there = [Chunk(shard["rows"], shard["input_sha256"]) for shard in found["shards"]]
        problems = same_work.differences(found["settings"], settings, ignore=_NAMES)
        problems += _other_texts(there, chunks)
        entered, cut = _entered(folder)
        width = None if found["width"] is None else int(found["width"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problems = [f"its {MANIFEST} is damaged ({error})"]
    if problems and overwrite:
        return fresh
    if problems:
        raise UserError(same_work.refusal(folder, problems, _ADVICE))
    intact = [_intact(folder / shard_name(n), digests) for n, digests in enumerate(entered)]
    damaged = sum(bool(a) and b is None for a, b in zip(entered, intact, strict=True))
    cut = [n if sha else None for n, sha in zip(cut, intact, strict=True)]
    return Shards(folder, settings, chunks, intact, cut, width, damaged, is_new=False)


def _digests(manifest: AnyPath) -> list[str | None]:
    return [shard["sha256"] for shard in json_files.read_object(manifest)["shards"]]


def _entered(folder: AnyPath) -> tuple[list[set[str]], list[int | None]]:
    """What any process entered of each shard: digests, and how many texts were cut."""
    manifests = (folder / MANIFEST, *folder.glob("manifest.*.json"))
    shards = [json_files.read_object(path)["shards"] for path in manifests]
    digests: list[set[str]] = []
    truncated: list[int | None] = []
    for copies in zip(*shards, strict=True):
        digests.append({one["sha256"] for one in copies if one["sha256"] is not None})
        counts = [one.get("truncated") for one in copies]
        truncated.append(max((n for n in counts if n is not None), default=None))
    for entry in journal.entries(folder):
        if entry.shard < len(digests):
            digests[entry.shard].add(entry.sha256)
            truncated[entry.shard] = entry.truncated
    return digests, truncated


def _other_texts(found: Sequence[Chunk], asked: Sequence[Chunk]) -> list[str]:
    rows = [[chunk.rows for chunk in chunks] for chunks in (found, asked)]
    if sum(rows[0]) != sum(rows[1]):
        return [f"the input had {sum(rows[0])} texts and has now {sum(rows[1])}"]
    if rows[0] != rows[1]:
        return []  # shards of another size, which the settings tell
    changed = sum(a.content != b.content for a, b in zip(found, asked, strict=True))
    return [f"the input's texts have changed, in {changed} of {len(asked)} shards"] * bool(changed)


def _intact(path: AnyPath, entered: set[str]) -> str | None:
    """The digest of a shard that is what some process entered."""
    digest = atomic.sha256(path) if entered and path.exists() else None
    return digest if digest in entered else None
