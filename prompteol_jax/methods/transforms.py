"""Transforms of a text: the texts whose vectors are averaged in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.methods.record import Transform
from prompteol_jax.storage.json_files import parse_object
from prompteol_jax.text.template import clean_sentence

Variants = Callable[[str], list[str]]
_MOST_LINE: Final = 2**20  # characters of a line of an expansion file


def variants_of(transform: Transform | None, folder: Path | None) -> Variants | None:
    """Return the function from a text to its variants; None where a text stays as it is.

    Args:
        folder: where an expansion file is.
    Raises: UserError, NotFound where an expansion file is missing or wrong.
    """
    if transform is None:
        return None
    if transform.kind == "reversed-words":
        return lambda text: [" ".join(reversed(text.split()))]
    if transform.kind == "chunks":
        assert transform.words is not None  # a record without it is refused
        return partial(_chunks, transform.words)
    if transform.file is None or folder is None:
        raise UserError(
            "a prompt of the method takes variants of each text from an expansion file, and the "
            "record names none; write the record to a folder with its file as `transform.file`: "
            'JSON lines of {"text": ..., "variants": [...]}'
        )
    return partial(_expanded, read_expansions(folder / transform.file), transform.file)


def read_expansions(file: Path) -> dict[str, list[str]]:
    """Read an expansion file: the variants of each text.

    A text is also found in the form that the original's evaluation rewrites it to, with variants
    rewritten alike.

    Raises: NotFound; UserError naming the first line that is wrong.
    """
    if not file.is_file():
        raise NotFound(f"expansion file {file} does not exist")
    try:
        found = _lines(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}; save it as UTF-8") from None
    for text, variants in list(found.items()):
        found.setdefault(clean_sentence(text), [clean_sentence(other) for other in variants])
    return found


def _lines(file: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                text, variants = _line(line, f"{file}:{number}")
                if text in found:
                    raise UserError(f"{file}:{number}: the text is there twice: {text[:200]!r}")
                found[text] = variants
    return found


def _line(line: str, where: str) -> tuple[str, list[str]]:
    fields = parse_object(line, where) if len(line) <= _MOST_LINE else {}
    if set(fields) == {"text", "variants"}:
        text, variants = fields["text"], fields["variants"]
        several = variants if isinstance(variants, list) else []
        if several and all(isinstance(part, str) for part in [text, *several]):
            return text, several
    raise UserError(f'{where} must be {{"text": text, "variants": [text, ...]}}')


def _chunks(words: int, text: str) -> list[str]:
    own = text.split()
    return [" ".join(own[n : n + words]) for n in range(0, len(own), words)] or [text]


def _expanded(table: dict[str, list[str]], file: str, text: str) -> list[str]:
    if text not in table:
        raise UserError(f"{file} has no variants of the text {text[:200]!r}")
    return table[text]


def flattened(variants: Variants, texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the variants of all texts in one list, and the number of each one's text."""
    each = [variants(text) for text in texts]
    owners = [number for number, own in enumerate(each) for _ in own]
    return [text for own in each for text in own], owners
