"""From rows of text to the ids of their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from prompteol_jax.text.prompt import Prompt
from train.data.triplets import Triplet


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

    def filled(self, rows: Sequence[Triplet]) -> list[list[str]]:
        """Return the prompts of each column, as text."""
        template, tokenizer = self.prompt.template, self.prompt.tokenizer
        return [
            [template.fill(text) for text in tokenizer.cut([getattr(r, c) for r in rows], self.cut)]
            for c in self.columns
        ]

    def __call__(self, rows: Sequence[Triplet]) -> tuple[list[np.ndarray], Bool[np.ndarray, "n"]]:
        """Return the ids of all sentences, row by row, and whether each began with the prefix.

        The ids of one that began with it are those after the shared prefix.
        """
        texts = [getattr(row, column) for row in rows for column in self.columns]
        prompts = self.prompt(self.prompt.tokenizer.cut(texts, self.cut))
        return prompts.ids, prompts.shared
