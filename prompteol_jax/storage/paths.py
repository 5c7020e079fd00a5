"""Where files lie: on this machine, or in a bucket of Google Cloud Storage (`gs://BUCKET/NAME`).

What is read from a bucket is copied here first, for weights are mapped and the readers of parquet,
tokenizers and datasets take files. What is written there goes through `as_path`, whose result has
the methods of a `Path` either way. A bucket has no folders, renames or appends: an object appears
whole, so whatever several objects stand for is told by the one that is written last.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prompteol_jax import runtime
from prompteol_jax.errors import AlreadyExists, NotFound, Unreachable, UserError

_SCHEME: Final = "gs:/"  # pathlib makes one stroke of two


def is_bucket(path: str | os.PathLike) -> bool:
    """Say whether a path leads into a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def as_path(path: str | os.PathLike) -> Any:
    """The path as a `Path`, or as etils' `epath.Path` where it leads into a bucket.

    Raises: UserError where what reads buckets is not installed.
    """
    if not is_bucket(path):
        return Path(path)
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{path} lies in a bucket, which needs the extra `gcs`: "
            'pip install ".[gcs]", or give a path on this machine'
        )
    from etils import epath

    runtime.list_buckets_afresh()
    return epath.Path("gs://" + os.fspath(path).removeprefix(_SCHEME).lstrip("/"))


def local_copy(path: str | os.PathLike, *, depth: int | None = None) -> Path:
    """The file or folder on this machine: itself, or a checked copy of what a bucket holds.

    Copies stay in the user's cache folder, under a name that changes with their content.

    Args:
        depth: levels of a folder to copy, all by default.
    Raises: NotFound where the bucket holds nothing there; ConnectionError where it cannot
        be reached.
    """
    if not is_bucket(path):
        return Path(path)
    origin = as_path(path)
    with _explained(origin):
        found = _system().find(str(origin), maxdepth=depth, detail=True)
    root = str(origin).removeprefix("gs://")
    objects = {name.removeprefix(root).strip("/"): facts for name, facts in found.items()}
    objects = {name: facts for name, facts in objects.items() if facts["type"] == "file"}
    if not objects:
        raise NotFound(f"{origin} does not exist")
    state = [(name, facts["size"], facts.get("etag")) for name, facts in sorted(objects.items())]
    digest = hashlib.sha256(repr((root, state)).encode()).hexdigest()[:16]
    copy = runtime.cache_folder() / "gs" / digest / origin.name
    if not copy.exists():
        _copy(root, objects, copy)
    return copy


def check_bucket(path: str | os.PathLike) -> None:
    """Refuse a path into a bucket that is not there, before any work.

    Raises: NotFound; ConnectionError where the bucket cannot be reached.
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


def upload(source: Path, target: Any) -> None:
    """Copy a file, or all files of a folder, into a bucket."""
    with _explained(target):
        for name in files(source) if source.is_dir() else [""]:
            _system().put_file(str(source / name), str(target / name if name else target))


@contextlib.contextmanager
def upload_on_exit(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder here to write into: itself, or one whose files then go to the bucket.

    Raises: AlreadyExists where one of them is there already.
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
    """Refuse buckets where what is written must lie on this machine.

    Raises: UserError.
    """
    distant = [str(as_path(path)) for path in paths if path is not None and is_bucket(path)]
    if distant:
        raise UserError(
            f"{', '.join(distant)}: this is written to this machine only; give a path here, and "
            "copy it with `gcloud storage cp`"
        )


def files(folder: Any) -> list[str]:
    """Paths of all files in a folder and those within it, from that folder on, in their order."""
    if not is_bucket(folder):
        paths = (p for p in folder.rglob("*") if not p.is_dir())
        return sorted(p.relative_to(folder).as_posix() for p in paths)
    root = f"{folder}/".removeprefix("gs://")
    with _explained(folder):
        return sorted(name.removeprefix(root) for name in _system().find(str(folder)))


def remove(folder: Any) -> None:
    """Remove a folder and all that it holds, if it is there."""
    if is_bucket(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _system() -> Any:
    import fsspec

    return fsspec.filesystem("gcs")


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
    told = facts.get("md5Hash")  # objects put together from parts have none
    with file.open("rb") as content:
        md5 = base64.b64encode(hashlib.file_digest(content, "md5").digest()).decode()
    if size != facts["size"] or told not in (None, md5):
        raise Unreachable(f"gs://{source} did not arrive as it is there; try again")


@contextlib.contextmanager
def _explained(path: Any) -> Iterator[None]:
    """Turn what the cloud's libraries raise into an error that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreachable(
            f"{path} could not be reached: {reason}. Check the bucket's name and that this account "
            "may use it; `gcloud auth application-default login` signs in"
        ) from error
