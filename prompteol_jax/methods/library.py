"""The shipped records, and records in files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from prompteol_jax.errors import NotFound, UserError, nearest
from prompteol_jax.methods.record import Method
from prompteol_jax.storage import paths
from prompteol_jax.storage.json_files import read_object, write_object

RECORDS: Final = Path(__file__).parent / "records"
FILE: Final = "method.json"  # name of the record in a folder of fitted numbers, or an adapter's


@functools.cache
def shipped() -> Mapping[str, Path]:
    """Return the files of the shipped records by the name of the method."""
    found = {
        file.relative_to(RECORDS).with_suffix("").as_posix(): file
        for file in sorted(RECORDS.rglob("*.json"))
    }
    return MappingProxyType(found)


def find_method(name_or_path: str | Path | Method) -> Method:
    """Return a method by its name, or from a JSON file, or from a folder with `method.json`.

    Raises: NotFound for a missing file; UserError for an unknown name, with the nearest one, or for
        a bad record.
    """
    if isinstance(name_or_path, Method):
        return name_or_path
    name = str(name_or_path)
    if name in shipped():
        return read_method(shipped()[name])
    path = paths.local_copy(name)
    if path.is_dir():
        path = path / FILE
    elif path.suffix != ".json":
        raise UserError(
            f"unknown method {name!r}{nearest(name, shipped())}. `prompteol methods` lists them; "
            "or give a record's file ending in .json, or the folder of one"
        )
    if not path.is_file():
        raise NotFound(f"method file {path} does not exist")
    return read_method(path)


def read_method(file: Path) -> Method:
    """Read a record's file."""
    return Method.from_json(read_object(file), str(file), file.parent)


def write_method(file: Path, method: Method) -> None:
    """Write a record's file."""
    write_object(file, method.to_json())
