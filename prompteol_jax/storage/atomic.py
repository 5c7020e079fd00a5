"""Files that survive a kill and a loss of power, and are recognized by their content.

They may be in a bucket (`paths`), where an object is durable once it is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from prompteol_jax.errors import CannotWrite, IsAFolder, UserError
from prompteol_jax.storage import paths
from prompteol_jax.storage.paths import AnyPath


def sync(path: AnyPath) -> None:
    """Return once a file, or the names in a folder, would survive a loss of power."""
    if paths.is_bucket(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: AnyPath, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is seen complete or not at all; until then it is `PATH.XXXXXXXX.new`.

    What goes to a bucket is written to a temporary file first: a stream to the bucket that an error
    breaks off would leave half an object.

    Raises: CannotWrite if the disk refuses; what was there before stays, and nothing else does.
    """
    with explained(path):
        if paths.is_bucket(path):
            with tempfile.NamedTemporaryFile() as scratch:
                with Path(scratch.name).open("wb") as file:
                    write(file)
                paths.upload(Path(scratch.name), path)
            return
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            with path.open("wb") as file:
                write(file)
            return
        path = Path(path).resolve()  # a link stays one
        new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
        try:
            with new.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        sync(path.parent)


def prepare(*files: AnyPath | None) -> None:
    """Make the folders of files that long work will write, and check that they can be written.

    Raises: IsAFolder naming all folders where files were expected; CannotWrite.
    """
    given = [path for path in files if path is not None]
    folders = [str(path) for path in given if path.is_dir()]
    if folders:
        raise IsAFolder(f"expected a file to write, found a folder: {', '.join(folders)}")
    for path in given:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        there = path if path.exists() else path.parent
        if not paths.is_bucket(path) and not os.access(there, os.W_OK):
            raise CannotWrite(f"{path} cannot be written; give a file that can be")


@contextlib.contextmanager
def explained(path: AnyPath) -> Iterator[None]:
    """Name the path in an error of the disk, such as a full one, which names none.

    Raises: CannotWrite.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise CannotWrite(f"{path} could not be written: {error.strerror or error}") from error


def sha256(path: AnyPath) -> str:
    """Return the hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
