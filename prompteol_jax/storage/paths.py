"""Paths on this machine, or in a bucket of Google Cloud Storage (`gs://BUCKET/NAME`).

Files of a bucket are copied to this machine before they are read: weights are mapped, and the
readers of parquet, tokenizers and datasets take files. Files are written to a bucket through
`as_path`, whose result has the methods of a `Path` either way. A bucket has no folders, renames or
appends. An object appears whole, so a set of objects is complete when its last one is there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple, Protocol, cast, runtime_checkable

from prompteol_jax import runtime
from prompteol_jax.errors import AlreadyExists, NotFound, Unreachable, UserError

_SCHEME: Final = "gs:/"  # pathlib makes one stroke of two


@runtime_checkable
class AnyPath(Protocol):
    """What `Path` and etils' `epath.Path` have in common, as far as it is used here."""

    @property
    def name(self) -> str: ...
    @property
    def parent(self) -> AnyPath: ...
    @property
    def suffix(self) -> str: ...
    def __fspath__(self) -> str: ...
    def __truediv__(self, name: str, /) -> AnyPath: ...
    def exists(self) -> bool: ...
    def glob(self, pattern: str) -> Iterator[AnyPath]: ...
    def is_dir(self) -> bool: ...
    def is_file(self) -> bool: ...
    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None: ...
    @property
    def open(self) -> Callable[..., Any]: ...
    def read_bytes(self) -> bytes: ...
    @property
    def relative_to(self) -> Callable[..., PurePath]: ...
    def rename(self, target: Any) -> Any: ...
    def replace(self, target: Any) -> Any: ...
    def rglob(self, pattern: str) -> Iterator[AnyPath]: ...
    def rmdir(self) -> None: ...
    def stat(self) -> Any: ...
    def unlink(self, missing_ok: bool = False) -> None: ...
    def with_name(self, name: str) -> AnyPath: ...
    def write_text(self, data: str, encoding: str | None = None) -> Any: ...


def is_bucket(path: str | os.PathLike | AnyPath) -> bool:
    """Say whether a path leads into a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def as_path(path: str | os.PathLike | AnyPath) -> AnyPath:
    """Return a `Path`, or etils' `epath.Path` where the path leads into a bucket.

    Raises: UserError where what reads buckets is not installed.
    """
    if not is_bucket(path):
        return Path(path)
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{path} is in a bucket, which needs the extra `gcs`: "
            'pip install ".[gcs]", or give a path on this machine'
        )
    from etils import epath

    runtime.list_buckets_afresh()
    return epath.Path("gs://" + os.fspath(path).removeprefix(_SCHEME).lstrip("/"))


def local_copy(path: str | os.PathLike, *, depth: int | None = None) -> Path:
    """Return a file or folder on this machine: itself, or a checked copy of a bucket's objects.

    Copies stay in the user's cache folder, under a name that changes with their content.

    Args:
        depth: levels of a folder to copy, all by default.
    Raises: NotFound where the bucket holds nothing there; Unreachable where it cannot be reached;
        UserError where the name of an object would lead out of the copy's folder.
    """
    if not is_bucket(path):
        return Path(path)
    origin = as_path(path)
    with _explained(origin):
        found = _system().find(str(origin), maxdepth=depth, detail=True)
    root = str(origin).removeprefix("gs://")
    objects = {
        name.removeprefix(root).removeprefix("/"): facts
        for name, facts in found.items()
        if facts["type"] == "file"
    }
    if not objects:
        raise NotFound(f"{origin} does not exist")
    _check_names(origin, objects)
    state = [(name, facts["size"], facts.get("etag")) for name, facts in sorted(objects.items())]
    digest = hashlib.sha256(repr((root, state)).encode()).hexdigest()[:16]
    copy = runtime.cache_folder() / "gs" / digest / origin.name
    if not copy.exists():
        _copy(root, objects, copy)
    return copy


def check_bucket(path: str | os.PathLike) -> None:
    """Refuse a path into a bucket that is not there, before any work.

    Raises: NotFound; Unreachable where the bucket cannot be reached.
    """
    if not is_bucket(path):
        return
    name = str(as_path(path)).removeprefix("gs://").split("/")[0]
    with _explained(path):
        there = _system().exists(name)
    if not there:
        raise NotFound(
            f"{path}: there is no bucket {name}, or this account may not see it; "
            f"`gcloud storage buckets create gs://{name}` makes one"
        )


def upload(source: Path, target: AnyPath) -> None:
    """Copy a file, or all files of a folder, into a bucket."""
    with _explained(target):
        for name in files(source) if source.is_dir() else [""]:
            _system().put_file(str(source / name), str(target / name if name else target))


@contextlib.contextmanager
def upload_on_exit(folder: str | os.PathLike) -> Iterator[Path]:
    """Give a folder here to write into: itself, or one whose files go to the bucket on exit.

    Raises: AlreadyExists where the bucket holds one of the files.
    """
    if not is_bucket(folder):
        yield Path(folder)
        return
    target = as_path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / target.name
        yield written
        there = sorted(set(files(written)) & set(files(target)))
        if there:
            raise AlreadyExists(f"{target / there[0]} exists; remove it, or choose another folder")
        upload(written, target)


def refuse_buckets(*paths: Path | None) -> None:
    """Refuse paths into buckets for what is written to this machine only.

    Raises: UserError.
    """
    distant = [str(as_path(path)) for path in paths if path is not None and is_bucket(path)]
    if distant:
        raise UserError(
            f"{', '.join(distant)}: this is written to this machine only; give a path here, and "
            "copy it with `gcloud storage cp`"
        )


def files(folder: AnyPath) -> list[str]:
    """List the files in a folder and its subfolders, relative to it, sorted."""
    if not is_bucket(folder):
        paths = (p for p in folder.rglob("*") if not p.is_dir())
        return sorted(p.relative_to(folder).as_posix() for p in paths)
    root = f"{folder}/".removeprefix("gs://")
    with _explained(folder):
        return sorted(name.removeprefix(root) for name in _system().find(str(folder)))


def remove(folder: AnyPath) -> None:
    """Remove a folder and everything in it, if it is there."""
    if is_bucket(folder):
        cast(Any, folder).rmtree(missing_ok=True)  # only epath's paths have it
    else:
        shutil.rmtree(folder, ignore_errors=True)


class StoredObject(NamedTuple):
    """An object of a bucket as it was at one moment.

    Attributes:
        version: generation, which a new content changes, and metageneration, which `touch_object`
            changes.
    """

    content: bytes
    version: tuple[str, str]


def create_object(path: AnyPath, content: bytes) -> bool:
    """Write an object of a bucket where there is none; return False where there is one."""
    with _explained(path), contextlib.suppress(FileExistsError):
        _system().pipe_file(str(path), content, mode="create")
        return True
    return False


def read_object(path: AnyPath) -> StoredObject | None:
    """Return a small object with its version; None where there is none."""
    while True:
        with _explained(path), contextlib.suppress(FileExistsError):
            try:
                facts = _of_object("GET", path, json_out=True)
                version = str(facts["generation"]), str(facts["metageneration"])
                _, content = _of_object("GET", path, alt="media", ifGenerationMatch=version[0])
            except FileNotFoundError:
                return None
            return StoredObject(content, version)
        # Another content replaced it between the two questions.


def touch_object(path: AnyPath, version: tuple[str, str]) -> None:
    """Change the metageneration of an object that still has this version, and nothing else."""
    fields = {"metadata": {"renewed": secrets.token_hex(4)}}
    with _explained(path), contextlib.suppress(FileNotFoundError, FileExistsError):
        _of_object("PATCH", path, json=fields, **_only(version))


def remove_object(path: AnyPath, version: tuple[str, str]) -> None:
    """Remove an object that still has this version."""
    with _explained(path), contextlib.suppress(FileNotFoundError, FileExistsError):
        _of_object("DELETE", path, **_only(version))


def _only(version: tuple[str, str]) -> dict[str, str]:
    return {"ifGenerationMatch": version[0], "ifMetagenerationMatch": version[1]}


def _of_object(method: str, path: AnyPath, **options: Any) -> Any:
    bucket, _, name = str(path).removeprefix("gs://").partition("/")
    return _system().call(method, "b/{}/o/{}", bucket, name, **options)


def _system() -> Any:
    import fsspec

    return fsspec.filesystem("gcs")


def _check_names(origin: AnyPath, objects: Mapping[str, Any]) -> None:
    """Refuse names that are no path below a folder; a bucket can hold any name.

    One object may be the copy itself, with an empty name, but then it is the only one.
    """
    for name in objects:
        parts = name.split("/")
        if name == "" and len(objects) == 1:
            continue
        unsafe = any(part in ("", ".", "..") or "\0" in part for part in parts)
        if unsafe or Path(name).is_absolute() or "\\" in name:
            raise UserError(
                f"{origin} holds an object whose name is no path below it: {name!r}; rename or "
                "remove the object"
            )


def _copy(root: str, objects: Mapping[str, Mapping[str, Any]], copy: Path) -> None:
    copy.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent.parent, prefix=".copying-") as scratch:
        for name, facts in objects.items():
            source = f"{root}/{name}" if name else root
            file = Path(scratch) / copy.name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with _explained(f"gs://{source}"):
                _system().get_file(source, str(file))
            _check(file, facts, source)
        with contextlib.suppress(FileExistsError):
            copy.parent.mkdir()
        with contextlib.suppress(OSError):  # another process was first
            (Path(scratch) / copy.name).rename(copy)


def _check(file: Path, facts: Mapping[str, Any], source: str) -> None:
    size = file.stat().st_size
    stored = facts.get("md5Hash")  # objects composed of parts have none
    with file.open("rb") as content:
        md5 = base64.b64encode(hashlib.file_digest(content, "md5").digest()).decode()
    if size != facts["size"] or stored not in (None, md5):
        raise Unreachable(f"download of gs://{source} is incomplete or corrupt; try again")


@contextlib.contextmanager
def _explained(path: Any) -> Iterator[None]:
    """Turn the errors of the cloud's libraries into one that says what to do."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreachable(
            f"{path} could not be reached: {reason}. Check the bucket's name and that this account "
            "may use it; `gcloud auth application-default login` signs in"
        ) from error
