"""From triplets to the ids of requests and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prompteol_jax.errors import UserError
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import Tokenizer
from train.align.frames import Frame

ANSWERS = ("sent1", "hard_neg")  # chosen and rejected


class Dialog(NamedTuple):
    """The ids of a request and of an answer to it; the two are tokenized separately."""

    request: np.ndarray
    answer: np.ndarray

    @property
    def tokens(self) -> int:
        """Number of ids that the model reads; the answer's last one is only predicted."""
        return self.request.size + self.answer.size - 1


@dataclasses.dataclass(frozen=True)
class Dialogs:
    """Fills rows into frame and instruction, and tokenizes them.

    Attributes:
        cut: tokens that a sentence is cut to first; None for whole ones.
        positions: the most ids that the model reads.
    """

    tokenizer: Tokenizer
    frame: Frame
    instruction: Template
    cut: int | None
    positions: int

    def __call__(self, rows: Sequence[Any]) -> list[Dialog]:
        """Return two dialogs of every row: with the chosen answer, then with the rejected one.

        Raises: UserError for a row that the model has not positions enough for.
        """
        template = self.instruction
        requests = [
            self.frame.around(f"{template.head}{text}{template.suffix}")
            for text in self._cut([row.sent0 for row in rows])
        ]
        columns = [
            self._answers(self._cut([getattr(row, name) for row in rows])) for name in ANSWERS
        ]
        dialogs = [
            Dialog(request, answer)
            for request, *answers in zip(self.tokenizer.ids(requests), *columns, strict=True)
            for answer in answers
        ]
        for number, dialog in enumerate(dialogs):
            if dialog.tokens > self.positions:
                raise UserError(
                    f"a row has {dialog.tokens} tokens with its frame, and the model reads "
                    f"{self.positions}: {rows[number // 2].sent0[:60]!r}; give --cut"
                )
        return dialogs

    def _answers(self, texts: Sequence[str]) -> list[np.ndarray]:
        first = len(self.tokenizer.first_ids)
        return [ids[first:] for ids in self.tokenizer.ids([t + self.frame.end for t in texts])]

    def _cut(self, texts: Sequence[str]) -> Sequence[str]:
        return texts if self.cut is None else self.tokenizer.cut(texts, self.cut)
