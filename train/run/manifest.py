"""Folders that carry the size and SHA-256 of each of their files, and so notice any change.

The manifest is a JSON file written after everything else, whole or not at all: a folder without one
is unfinished. It holds what the caller gives, `files`, and the SHA-256 of the two.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic, paths

NAME: Final = "manifest.json"


def write(folder: Any, content: Mapping[str, Any]) -> None:
    """Seals a folder: everything in it is on disk before its manifest appears.

    Raises: OSError if the disk refuses.
    """
    files = {name: _sealed(folder / name) for name in _files(folder)}
    body = {**content, "files": files}
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n"
    if paths.is_bucket(folder):
        (folder / NAME).write_text(text)
        return
    temporary = folder.with_name(f"{folder.name}-{NAME}")
    temporary.write_text(text)
    atomic.sync(temporary)
    temporary.rename(folder / NAME)
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        atomic.sync(path)


def read(folder: Any) -> dict[str, Any]:
    """Reads the manifest of a folder.

    Raises: NotFound if there is none; UserError if it is not what was written.
    """
    text = (folder / NAME).read_bytes()
    try:
        body = json.loads(text)
        digest = body.pop("sha256")
        intact = digest == _digest(body)
    except (ValueError, LookupError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise UserError(f"{NAME} is not what was written")
    return body


def damage(folder: Any) -> list[str]:
    """Lists what differs between the files of a folder and its manifest; empty if it is intact.

    Raises: NotFound if there is no manifest.
    """
    try:
        listed = read(folder)["files"]
    except ValueError as error:
        return [str(error)]
    found = _files(folder)
    problems = [f"{name} is missing" for name in listed if name not in found]
    problems += [f"{name} does not belong to it" for name in found if name not in listed]
    for name in (name for name in found if name in listed):
        size = _size(folder / name)
        if size != listed[name]["bytes"]:
            problems.append(f"{name} has {size} bytes instead of {listed[name]['bytes']}")
        elif atomic.sha256(folder / name) != listed[name]["sha256"]:
            problems.append(f"{name} is not what was written")
    return problems


def _files(folder: Any) -> list[str]:
    return [name for name in paths.files(folder) if name != NAME]


def _sealed(path: Any) -> dict[str, Any]:
    atomic.sync(path)
    return {"bytes": _size(path), "sha256": atomic.sha256(path)}


def _size(path: Any) -> int:
    found = path.stat()  # etils has a record of its own
    return found.length if paths.is_bucket(path) else found.st_size


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
