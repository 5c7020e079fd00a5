"""Candidates of a search: templates that differ in their demonstrations, read from files.

    .txt    the original's notation, one template a line; it brings its own form
    .csv    columns text and word
    .jsonl  {"text": ..., "word": ...} or {"demonstrations": [{"text": ..., "word": ...}, ...]}

The latter two are put before the slot of a template that is given.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.text.template import Demonstration, Template, from_notation

SHOWN_PROBLEMS: Final = 20
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
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    found: dict[str, Template] = {}
    problems = []
    for number, build in _READERS[path.suffix.lower()](text, base):
        try:
            template = dataclasses.replace(build(), name=f"{path.stem}:{number}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
        else:
            found.setdefault(key(template), template)
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else [])
        raise UserError(f"{len(problems)} bad lines in {path}:\n  " + "\n  ".join(shown))
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


def _txt_lines(text: str, _base: Template) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, lambda line=line: from_notation(line, "candidate")


def _jsonl_lines(text: str, base: Template) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, lambda line=line: _from_fields(json.loads(line), base)


def _csv_lines(text: str, base: Template) -> Iterator[Line]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"text", "word"} - set(reader.fieldnames or ())
    if missing:
        yield 1, lambda: _refuse(f"no column {' and '.join(sorted(missing))} in the header")
        return
    for row in reader:
        fields = {name: row[name] for name in ("text", "word")}
        yield reader.line_num, lambda fields=fields: _from_fields(fields, base)


_READERS: Final = {".txt": _txt_lines, ".csv": _csv_lines, ".jsonl": _jsonl_lines}


def _refuse(problem: str) -> Template:
    raise UserError(problem)


def _from_fields(fields: Any, base: Template) -> Template:
    if not isinstance(fields, dict):
        raise UserError(f"an object is needed, found {type(fields).__name__}")
    entries = fields["demonstrations"] if set(fields) == {"demonstrations"} else [fields]
    around = {"prefix": base.prefix, "suffix": base.suffix, "demonstrations": entries}
    shown = Template.from_json(around, "candidate").demonstrations
    if not shown or not all(d.text.strip() and d.word.strip() for d in shown):
        raise UserError("a demonstration needs a text and a word, neither of them empty")
    return extended(base, shown, "candidate")
