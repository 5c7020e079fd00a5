"""Files that survive a kill and a loss of power, and are known again by their content.

They may lie in a bucket (`paths`), where an object is durable once it is there.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from prompteol_jax.storage import paths


def sync(path: Any) -> None:
    """Return once a file, or the names in a folder, would survive a loss of power."""
    if paths.is_bucket(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Any, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is seen complete or not at all; until then it is `PATH.new`.

    What goes to a bucket is kept in a temporary file until then: a stream to it that an error
    breaks off would leave half an object.

    Raises: OSError if the disk refuses; what stood there before still does.
    """
    if paths.is_bucket(path):
        with tempfile.NamedTemporaryFile() as file:
            write(file)
            file.flush()
            paths.upload(Path(file.name), path)
        return
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sha256(path: Any) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
