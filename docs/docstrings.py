"""How the site reads docstrings: the line `Raises: UserError that ...` is prose, not a section."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ProseOfRaises(griffe.Extension):
    """Keeps griffe from reading `Raises: UserError that ...` as a section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Mark the word, so that the line is a paragraph."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Raises: (?=\S)", "**Raises:** ", obj.docstring.value, flags=re.MULTILINE
            )
