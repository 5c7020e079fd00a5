"""Lines of the files of a retrieval task: numbered, strict, and all their problems in one error."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import UserError

SHOWN: Final = 20
LINE_BYTES: Final = 2**26  # of one line, at most

# The text of a line, the names of its wrong fields, or None for a line that is left out.
Text = Callable[[Mapping[str, Any]], str | Collection[str] | None]


@dataclass
class Problems:
    """What is wrong in the files of a folder; of more than `SHOWN` the others are counted."""

    found: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, path: Path, line: int, what: str) -> None:
        """Note a problem of a line."""
        self.count += 1
        if len(self.found) < SHOWN:
            self.found.append(f"{path}:{line}: {what}")

    def refuse(self, folder: Path) -> None:
        """Raise a UserError with all problems, if there are any."""
        if self.count:
            rest = self.count - len(self.found)
            shown = [*self.found, *([f"and {rest} more"] if rest else [])]
            raise UserError(f"{self.count} problems in {folder}:\n  " + "\n  ".join(shown))


def opened(path: Path) -> AbstractContextManager[io.BufferedIOBase]:
    """Open a file, which may be gzipped, for reading bytes."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def numbered(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file that are not blank, decoded."""
    number = 0
    try:
        with opened(path) as file:
            while raw := file.readline(LINE_BYTES + 1):
                number += 1
                if len(raw) > LINE_BYTES:
                    problems.add(path, number, f"longer than {LINE_BYTES} bytes")
                    return
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    problems.add(path, number, f"not UTF-8 ({error.reason})")
                    continue
                if text.strip():
                    yield number, text
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        if path.suffix != ".gz":
            raise
        problems.add(path, number + 1, f"the gzip file is damaged ({error})")


def objects(path: Path, problems: Problems, wanted: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a jsonl file with their lines.

    Args:
        wanted: name of a field, for the error about a line that is no object.
    """
    for number, line in numbered(path, problems):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(path, number, f"not JSON ({str(error)[:80]})")
            continue
        if isinstance(fields, dict):
            yield number, fields
        else:
            kind = type(fields).__name__
            problems.add(path, number, f"a JSON {kind}, not an object with {wanted}, text")


def unique(path: Path, problems: Problems, key: str, text: Text) -> Iterator[tuple[str, str]]:
    """Yield the id and the text of every line; an id may be given once.

    Args:
        key: name of the field of the id.
    """
    first: dict[str, int] = {}
    for number, fields in objects(path, problems, key):
        name, found = fields.get(key), text(fields)
        if found is None:
            continue
        wrong = [] if isinstance(name, str) else [key]
        if wrong or not isinstance(found, str):
            wrong += [] if isinstance(found, str) else found
            problems.add(path, number, f"{' and '.join(wrong)} must be a string")
        elif name in first:
            problems.add(
                path, number, f"the id {name!r:.80} was given on line {first[name]} already"
            )
        else:
            first[str(name)] = number
            yield str(name), found


def texts(
    file: Iterable[bytes], name: str, decode: Callable[[bytes], str], text: Text
) -> Iterator[str]:
    """Yield the texts of a file that was read before without a problem, as a corpus reads them."""
    for number, raw in enumerate(file):
        line = decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw)
        if line.strip():
            found = text(json.loads(line))
            if found is not None:
                assert isinstance(found, str)  # as when it was read before
                yield found
