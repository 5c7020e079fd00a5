"""`--like MANIFEST`: serve queries with what a corpus was encoded with, or refuse to."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from prompteol_jax.cli.options import ModelOptions, spelled
from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.methods.library import shipped
from prompteol_jax.storage import json_files, paths, same_work
from prompteol_jax.storage.shards import MANIFEST

if TYPE_CHECKING:
    from prompteol_jax.serve.options import ServeOptions

_BY_CONTENT = ("adapter", "method")  # which a manifest does not name
_NAMES = ("model", "template")
_ADVICE = "Give the flags, model, method and adapter that the corpus was encoded with"


def filled(options: ServeOptions) -> ServeOptions:
    """Return the options with all that the manifest of `--like` says, and checked against it.

    A flag may repeat what the manifest says, or name other files of the same content.

    Raises: NotFound, UserError for a manifest that cannot be used, naming each flag and each file
        that differs.
    """
    if options.like is None:
        return options
    path = paths.as_path(options.like)
    path = path / MANIFEST if path.is_dir() else path
    if not path.exists():
        raise NotFound(f"no manifest {path} of --like; give a folder that `prompteol encode` wrote")
    found = json_files.read_object(path)
    settings, computed = found.get("settings"), found.get("computed", {})
    if not isinstance(settings, dict) or not isinstance(computed, dict):
        raise UserError(f"{path} is no manifest of encoded vectors: it has no settings")
    made = _with(options, {**computed, **settings}, path)
    if made.plan != "fixed":
        raise UserError(f"{path}: the corpus was encoded with --plan {made.plan}; serve has fixed")
    work = made.work("float32")
    before = {name: settings[name] for name in {**work, "method": None} if name in settings}
    same_work.check_same(path, before, work, advice=_ADVICE, ignore=_NAMES, label=spelled)
    return made


def _shipped_name(record: Any) -> str | None:
    """Return the name of a shipped method that a record may be; None where it is none of them."""
    name = record.get("name") if isinstance(record, dict) else None
    return name if name in shipped() else None


def _with(options: ServeOptions, said: dict[str, Any], path: Any) -> ServeOptions:
    """Replace every flag that was left at its default; refuse one that says otherwise."""
    changes: dict[str, Any] = {"raw": not said.get("normalize", False)}
    changes["clean"] = bool(said.get("clean", False))
    changes["method"] = options.method or _shipped_name(said.get("method"))
    other = []
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for field in dataclasses.fields(ModelOptions):
        name = field.name
        if name in _BY_CONTENT or name not in said:
            continue
        given = getattr(options, name)
        if given == defaults[name]:
            changes[name] = said[name]
        elif name not in _NAMES and given != said[name]:
            other.append(f"{spelled(name)} {given} is not its {said[name]!r}")
    if other:
        raise UserError(f"{path} of --like says otherwise: {'; '.join(other)}; leave them out")
    return dataclasses.replace(options, **changes)
