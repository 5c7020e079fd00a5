"""JSON objects in files: one reader, one error, one writer."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic
from prompteol_jax.storage.paths import AnyPath

LIMIT: Final = 2**24  # bytes; nested objects can take 24 times their text in memory
_KINDS: Final = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def read_object(path: AnyPath, limit: int = LIMIT) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        limit: largest number of bytes.
    Raises: OSError where the file cannot be read; UserError, naming the file, where it is longer
        than the limit, not UTF-8, not JSON, nested too deeply, not an object, or gives a name
        twice.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path} is longer than {limit} bytes, the most that is read")
    return parse_object(content, path)


def write_object(path: AnyPath, content: Mapping[str, Any]) -> None:
    """Write a file that holds one JSON object, whole or not at all.

    Raises: CannotWrite if the disk refuses; what was there before stays.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    atomic.write_whole(path, lambda file: file.write(text.encode()))


def parse_object(content: bytes | str, source: object) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        source: name of the file or field, for the error.
    Raises: UserError as `read_object`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8"
        ) from error
    except RecursionError as error:
        raise UserError(f"{source} is not usable JSON: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{source} is not JSON: {error}") from error
    if not isinstance(value, dict):
        kind = _KINDS.get(type(value), "a number")
        raise UserError(f"{source} is not a JSON object but {kind}; expected {{...}}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0]!r:.80} occurs twice")
    return fields
