"""Manifests: JSON files that carry their own checksum, and folders that are sealed by one.

A manifest is written after everything that it describes, whole or not at all. A folder without one
is unfinished. A sealed folder's manifest holds the size and SHA-256 of each file, and so notices
any change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic, json_files, paths
from prompteol_jax.storage.paths import AnyPath

NAME: Final = "manifest.json"


def write(path: AnyPath, content: Mapping[str, Any]) -> None:
    """Write a manifest, atomically, with the SHA-256 of its content in the field `sha256`.

    Raises: CannotWrite if the disk refuses; the manifest that was there before stays.
    """
    body = {name: value for name, value in content.items() if name != "sha256"}
    json_files.write_object(path, {**body, "sha256": _digest(body)})


def read(path: AnyPath) -> dict[str, Any]:
    """Read a manifest, without its field `sha256`.

    Raises: FileNotFoundError if there is none; UserError if it is not what was written.
    """
    body = json_files.read_object(path)
    if body.pop("sha256", None) != _digest(body):
        raise UserError(f"{path} is not what was written: its checksum differs")
    return body


def seal(folder: AnyPath, content: Mapping[str, Any]) -> None:
    """Write a folder's manifest, once every file in it is on the disk.

    Args:
        content: fields next to `files`, which holds the size and SHA-256 of every file.
    Raises: OSError if the disk refuses.
    """
    files = {name: _sealed(folder / name) for name in _files(folder)}
    if paths.is_bucket(folder):
        write(folder / NAME, {**content, "files": files})
        return
    staged = folder.with_name(f"{folder.name}-{NAME}")
    write(staged, {**content, "files": files})
    staged.rename(folder / NAME)
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        atomic.sync(path)


def damage(folder: AnyPath) -> list[str]:
    """List what differs between the files of a sealed folder and its manifest; empty if intact.

    Raises: FileNotFoundError if there is no manifest.
    """
    try:
        listed = read(folder / NAME)["files"]
    except UserError:
        return [f"{NAME} is not what was written"]
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


def _files(folder: AnyPath) -> list[str]:
    return [name for name in paths.files(folder) if name != NAME]


def _sealed(path: AnyPath) -> dict[str, Any]:
    atomic.sync(path)
    return {"bytes": _size(path), "sha256": atomic.sha256(path)}


def _size(path: AnyPath) -> int:
    found = path.stat()  # etils has its own record
    return found.st_size if isinstance(path, Path) else found.length


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
