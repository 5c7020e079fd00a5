"""Candidates of a search: templates that differ in their demonstrations, read from files.

    .txt    the original's notation, one template a line; it brings its own form
    .csv    columns text and word
    .jsonl  {"text": ..., "word": ...} or {"demonstrations": [{"text": ..., "word": ...}, ...]}

The latter two are put before the slot of a template that is given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import NotFound, UserError, listed_lines
from prompteol_jax.storage import tables
from prompteol_jax.text.template import Demonstration, Template, from_notation

Line = tuple[int, Callable[[], Template]]


def read_candidates(path: Path, base: Template) -> list[Template]:
    """Read candidates in their order, named after file and line; repeated ones are kept once.

    Raises: NotFound where there is no such file; UserError for an unknown kind of file, for one
        without candidates, and for bad lines, naming all of them.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}; give candidates as {', '.join(_READERS)}")
    if path.suffix.lower() not in _READERS:
        raise UserError(
            f"{path}: unknown kind {path.suffix!r}; candidates come as {', '.join(_READERS)}"
        )
    found: dict[str, Template] = {}
    problems = []
    for number, build in _READERS[path.suffix.lower()](path, base):
        try:
            template = dataclasses.replace(build(), name=f"{path.stem}:{number}")
        except UserError as error:
            problems.append(f"line {number}: {error}")
        else:
            found.setdefault(key(template), template)
    if problems:
        raise UserError(f"{len(problems)} bad lines in {path}:{listed_lines(problems)}")
    if not found:
        raise UserError(f"{path} holds no candidates")
    return list(found.values())


def key(template: Template) -> str:
    """Return a digest of a template's content, its name left out."""
    text = json.dumps(template.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def extended(template: Template, shown: Sequence[Demonstration], name: str) -> Template:
    """Return a template with more demonstrations behind those it has."""
    return dataclasses.replace(
        template, name=name, demonstrations=(*template.demonstrations, *shown)
    )


def write_candidates(path: Path, shown: Sequence[Demonstration]) -> None:
    """Write demonstrations as a `.jsonl` file, one per line."""
    lines = [json.dumps(d._asdict(), ensure_ascii=False) + "\n" for d in shown]
    path.write_text("".join(lines), encoding="utf-8")


def _notation_lines(path: Path, _base: Template) -> Iterator[Line]:
    with path.open("rb") as file:
        tables.skip_mark(file, str(path))
        for number, raw in enumerate(file.read().split(b"\n"), start=1):
            line = tables.escaped(raw)
            if line.strip():
                yield number, partial(_from_notation, line)


def _table_rows(path: Path, base: Template) -> Iterator[Line]:
    for number, row in tables.read_rows(path, _check_columns):
        yield number, partial(_from_fields, row, base)


_READERS: Final = {".txt": _notation_lines, ".csv": _table_rows, ".jsonl": _table_rows}


def _check_columns(names: Sequence[str]) -> Sequence[str]:
    missing = {"text", "word"} - set(names)
    if missing:
        raise UserError(f"no column {' and '.join(sorted(missing))} in the header")
    return names


def _from_notation(line: str) -> Template:
    if not tables.is_utf8(line):
        raise UserError("not UTF-8")
    return from_notation(line, "candidate")


def _from_fields(row: dict[str, Any] | tables.Bad, base: Template) -> Template:
    if isinstance(row, tables.Bad):
        raise UserError(row.what)
    if set(row) == {"demonstrations"}:
        entries = row["demonstrations"]
    else:
        entries = [{name: row[name] for name in ("text", "word") if name in row}]
    around = {"prefix": base.prefix, "suffix": base.suffix, "demonstrations": entries}
    shown = Template.from_json(around, "candidate").demonstrations
    if not shown or not all(d.text.strip() and d.word.strip() for d in shown):
        raise UserError("a demonstration needs a text and a word, neither of them empty")
    if not all(tables.is_utf8(part) for d in shown for part in d):
        raise UserError("not UTF-8")
    return extended(base, shown, "candidate")
