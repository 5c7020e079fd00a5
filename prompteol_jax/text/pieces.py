"""Prompts in pieces: every part is tokenized alone, and the ids are joined.

Echo's published checkpoints were trained so (Springer et al. 2025): a tokenizer then merges nothing
across the border of a text, and both copies of a text have the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prompteol_jax.errors import UserError
from prompteol_jax.text.template import EOS, SLOT, Template
from prompteol_jax.text.tokenizer import Tokenizer


class PieceIds:
    """The ids of a prompt in pieces.

    BOS is put first, unless the first piece begins with it.

    Attributes:
        fixed: number of ids that are not the text's.
        copies: number of times that the text's ids are in the prompt.
        after: number of ids after the last copy of the text.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer):
        """Tokenize the pieces.

        Raises: UserError where the tokenizer has no end token and the template wants one.
        """
        if EOS in template.pieces and tokenizer.eos_id is None:
            raise UserError(
                f"template {template.name} ends in the tokenizer's end token, and the tokenizer "
                "names none; name it as eos_token in tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._parts = [self._part(piece) for piece in template.pieces]
        bos = tokenizer.first_ids
        first = self._parts[0]
        if bos and (first is None or first[: len(bos)].tolist() != bos):
            self._parts.insert(0, np.array(bos, np.int32))
        self.fixed = sum(len(part) for part in self._parts if part is not None)
        self.copies = sum(part is None for part in self._parts)
        last = max(number for number, part in enumerate(self._parts) if part is None)
        self.after = sum(len(part) for part in self._parts[last + 1 :] if part is not None)

    def __call__(
        self, texts: Sequence[str], max_tokens: int | None = None, *, middle: bool = False
    ) -> list[tuple[np.ndarray, bool]]:
        """Return the ids of each text's prompt, and whether the text's ids were cut.

        Args:
            max_tokens: largest number of ids; a longer text's ids are cut, in each copy alike.
            middle: cut them in their middle, not at their end.
        """
        most = None if max_tokens is None else (max_tokens - self.fixed) // self.copies
        return [self._joined(_cut(own, most, middle=middle), len(own)) for own in self._bare(texts)]

    def copy_start(self, tokens: int) -> int:
        """Return the position of the last copy's first id in a prompt of so many ids."""
        return tokens - self.after - (tokens - self.fixed) // self.copies

    def _joined(self, own: np.ndarray, whole: int) -> tuple[np.ndarray, bool]:
        parts = [own if part is None else part for part in self._parts]
        return np.concatenate(parts), len(own) < whole

    def _part(self, piece: str) -> np.ndarray | None:
        if piece == SLOT:
            return None
        if piece == EOS:
            return np.array([self._tokenizer.eos_id], np.int32)
        return self._bare([piece])[0]

    def _bare(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return ids without BOS."""
        begin = len(self._tokenizer.first_ids)
        return [ids[begin:] for ids in self._tokenizer.ids(texts)]


def _cut(ids: np.ndarray, most: int | None, *, middle: bool) -> np.ndarray:
    if most is None or len(ids) <= most or not middle:
        return ids[:most]
    return np.concatenate([ids[: most - most // 2], ids[len(ids) - most // 2 :]])
