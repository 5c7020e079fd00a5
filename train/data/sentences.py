"""From rows of text to the ids of their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from prompteol_jax.errors import UserError
from prompteol_jax.text.prompt import Prompt

MIDDLE: Final = ","  # ends the first part of a suffix that has a middle
_SHOWN: Final = ("A man runs.", "the", "0", "(a) b!")


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Cuts the sentences of rows, fills them into the prompt and tokenizes them.

    Attributes:
        cut: tokens that a sentence is cut to before it goes into the template.
        columns: texts of a row, in the order of the loss.
    """

    prompt: Prompt
    cut: int
    columns: tuple[str, ...]

    def filled(self, rows: Sequence[Any]) -> list[list[str]]:
        """Return the prompts of each column, as text."""
        template, tokenizer = self.prompt.template, self.prompt.tokenizer
        return [
            [template.fill(text) for text in tokenizer.cut([getattr(r, c) for r in rows], self.cut)]
            for c in self.columns
        ]

    def __call__(self, rows: Sequence[Any]) -> tuple[list[np.ndarray], Bool[np.ndarray, "n"]]:
        """Return the ids of all sentences, row by row, and whether each began with the prefix.

        The ids of one that began with it are those after the shared prefix.
        """
        texts = [getattr(row, column) for row in rows for column in self.columns]
        prompts = self.prompt(self.prompt.tokenizer.cut(texts, self.cut))
        return prompts.ids, prompts.shared


def offsets_of(positions: Sequence[str], prompt: Prompt) -> tuple[int, ...]:
    """Return how many tokens before a prompt's last one each position is.

    Raises: UserError where the template has no middle.
    """
    return tuple(_after_middle(prompt) if name == "middle" else 0 for name in positions)


def _after_middle(prompt: Prompt) -> int:
    """Return the number of tokens after the middle: the token before the suffix's first comma."""
    template = prompt.template
    first, comma, _ = template.suffix.partition(MIDDLE)
    heads = prompt.tokenizer.ids([(template.head + text + first).strip() for text in _SHOWN])
    wholes = prompt.tokenizer.ids([template.fill(text) for text in _SHOWN])
    pairs = [*zip(heads, wholes, strict=True)]
    after = {len(whole) - len(head) for head, whole in pairs}
    begins = all(np.array_equal(whole[: len(head)], head) for head, whole in pairs)
    if not comma or not begins or len(after) > 1:
        raise UserError(
            f"template {template.name} has no middle: this loss needs a suffix with a comma "
            'between its two parts, such as `" means in one word, it can be summarized as`; '
            "give --template"
        )
    return after.pop()
