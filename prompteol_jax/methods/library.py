"""The shipped records, and records in files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from prompteol_jax.errors import NotFound, UserError, nearest
from prompteol_jax.methods.record import Method, PromptView
from prompteol_jax.storage import paths
from prompteol_jax.storage.fingerprint import files_sha256
from prompteol_jax.storage.json_files import read_object, write_object
from prompteol_jax.text.template import Template

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


def plain_method(template: Template, pooling: str, layer: int | None) -> Method:
    """Return the method of a template alone."""
    return Method(template.name, (PromptView(template),), pooling=pooling, layer=layer)


def read_method(file: Path) -> Method:
    """Read a record's file."""
    return Method.from_json(read_object(file), str(file), file.parent)


def describe(method: Method) -> dict[str, Any]:
    """Return a record, and the SHA-256 of the files that it names, for a result file."""
    names = [stage.file for stage in method.post]
    names += [view.transform.file for view in method.prompts if view.transform]
    files = [method.folder / name for name in names if name and method.folder]
    return method.to_json() | ({"files": files_sha256(files)} if files else {})


def check_trained_with(adapter: Path, method: Method) -> None:
    """Refuse an adapter whose folder holds the record of another method than this one.

    What a record says about its source does not count, nor do post stages.

    Raises: UserError.
    """
    file = adapter / FILE
    if not file.is_file():
        return  # an adapter of another project, or of an earlier version
    trained = read_method(file)
    differing = [
        name
        for name in ("prompts", "layer", "pooling", "copy", "subtract", "collect", "slot")
        if _plain(trained, name) != _plain(method, name)
    ]
    if differing:
        raise UserError(
            f"the adapter {adapter} was trained with the method {trained.name}, and {method.name} "
            f"differs in {', '.join(differing)}; give --method {file}, or allow it: --any-method "
            "(any_method=True in Python)"
        )


def _plain(method: Method, name: str) -> Any:
    """Return a part of a record without the names of templates."""
    return (
        method.to_json().get(name)
        if name != "prompts"
        else [(view.template.to_json(), view.transform) for view in method.prompts]
    )


def write_method(file: Path, method: Method) -> None:
    """Write a record's file."""
    write_object(file, method.to_json())
