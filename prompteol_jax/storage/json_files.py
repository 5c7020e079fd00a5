"""JSON objects of files that others may have written: one reader, one error."""

from __future__ import annotations

import json
from typing import Any, Final

from prompteol_jax.errors import UserError

_KINDS: Final = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def read_object(path: Any) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises: OSError where the file cannot be read; UserError, naming the file, where it is not
        UTF-8, not JSON, nested too deeply, or not an object.
    """
    return parse_object(path.read_bytes(), path)


def parse_object(content: bytes | str, source: object) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        source: name of the file or field, for the error.
    Raises: UserError as `read_object`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
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
