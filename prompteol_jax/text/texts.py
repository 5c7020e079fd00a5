"""The texts that a caller passes: one list of strings, or an error that says what to pass."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from prompteol_jax.errors import WrongType


def as_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts of a list, tuple, generator, numpy array or column of a table, in order.

    Raises: WrongType for anything else and for entries that are no strings; it says what to pass.
    """
    advice = _advice(texts)
    if advice:
        raise WrongType(f"texts is {advice}")
    for method in ("tolist", "to_list", "to_pylist"):  # numpy and pandas, polars, pyarrow
        if hasattr(texts, method):
            texts = getattr(texts, method)()
            break
    found = list(texts)
    wrong = [i for i, text in enumerate(found) if not isinstance(text, str)]
    if wrong:
        kind = type(found[wrong[0]]).__name__
        raise WrongType(f"texts[{wrong[0]}] is {kind}, not str ({len(wrong)} such entries)")
    return found


def _advice(texts: Any) -> str | None:
    """Return what is wrong with the argument and what to pass, or None."""
    kind = type(texts).__name__
    if isinstance(texts, str):
        return "one string; give a list of strings: encode([text])"
    if isinstance(texts, (bytes, bytearray)):
        return f"{kind}; decode it and give a list of strings: encode([text.decode()])"
    if isinstance(texts, os.PathLike):
        return "a path; read it and give its lines: encode(path.read_text().splitlines())"
    if isinstance(texts, io.IOBase):
        return "an open file; give its lines: encode(file.read().splitlines())"
    if hasattr(texts, "columns"):
        return f"a table ({kind}); give one column: encode(table['text'])"
    if isinstance(texts, Mapping):
        return f"a {kind}; give its values: encode(list(texts.values()))"
    if isinstance(texts, AbstractSet):
        return f"a {kind}, which has no order; give a list: encode(sorted(texts))"
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        return f"an array of {texts.ndim} axes; give one axis: encode(texts.ravel())"
    if not isinstance(texts, Iterable):
        return f"{kind}; give a list of strings"
    return None
