"""From texts to ids: the prompt around each sentence, and the ids that all prompts share.

The prompt of every sentence starts with the same characters, so the keys and values of its first
ids can be computed once. But a tokenizer merges across the border between template and sentence:
`"` and `(` may become one token. What all sentences share is therefore not the template tokenized
alone; `stable_prefix` finds it by filling the template with sentences that begin in every awkward
way, and `Prompt` still compares each prompt with it and says which ones differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from prompteol_jax.errors import UserError
from prompteol_jax.text.pieces import PieceIds
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import Tokenizer, paired

_AMPLE: Final = 16  # characters looked at for each id that fits, before looking at more
_REACH: Final = 16  # characters beyond the guess that are tried; 3 were the most that ever fitted
_BATCH: Final = 8  # lengths tried together

# Beginnings of sentences that tokenizers merge with the quote or the space before them.
_PROBES: Final = (
    *("", " ", "  x", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u200b", "\u0301", "\ufffd"),
    *("a", "A", "the", "The", "I", "s", "x", "é", "ß", "0", "7", "2024", "你", "の", "я", "😀"),
    *"!#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\"",
    *('"a', "''", "``", "...", "--", "//", "</", "((", "[[", ").", '.")', "'s", "’s"),
    *("“", "—", "£"),
)


class PromptIds(NamedTuple):
    """The ids of n prompts, each without the stable prefix where it began with it."""

    ids: list[np.ndarray]  # int32; at least one id each
    shared: Bool[np.ndarray, " n"]  # the prompt began with prefix_C, which is left out of its ids
    truncated: Bool[np.ndarray, " n"]  # the sentence lost characters at its end


class Prompt:
    """A template and a tokenizer: from sentences to the ids that the model reads.

    Attributes:
        prefix_C: the ids that all prompts begin with.
        most_shared: largest number of ids of a prompt that shares them; None for no bound.
        suffix_tokens: number of ids after the prefix in the prompt of an empty sentence.
    """

    prefix_C: Int32[np.ndarray, " C"]
    suffix_tokens: int

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        placeholder: str | None = None,
        most_shared: int | None = None,
    ):
        """Find the stable prefix.

        Args:
            max_tokens: largest number of ids of a prompt, BOS included; at most the model's
                positions.
            placeholder: text of a token before the slot that is not in the vocabulary. The stable
                prefix ends before it, so it is the first id of every text; the id itself is 0.
            most_shared: largest number of ids of a prompt that shares the prefix, where the states
                of longer ones differ in the prefix too; None for no bound.
        Raises: UserError if the template alone has more ids than that.
        """
        added: tuple[Tokenizer, int | None] = (tokenizer, None)
        if placeholder is not None:
            added = tokenizer.with_token(placeholder)
        self._ids = _Ids(template, *added)
        (alone,) = self._ids([""])
        if len(alone) > max_tokens:
            raise UserError(
                f"template {template.name} alone is {len(alone)} tokens and a prompt may have "
                f"{max_tokens}; use a shorter template, a larger max_tokens or a model with more "
                "positions"
            )
        self.template = template
        self.tokenizer = tokenizer
        self.max_tokens, self.most_shared = max_tokens, most_shared
        self.prefix_C = self._ids.prefix()
        self.suffix_tokens = max(1, len(alone) - len(self.prefix_C))

    def __call__(self, texts: Sequence[str]) -> PromptIds:
        """Return the ids of each sentence's prompt.

        Where a prompt would have more than `max_tokens` ids, the sentence is cut at its end to its
        longest beginning, in characters, that fits; template and demonstrations stay whole.
        """
        # No tokenizer needs all of an endless text to tell that it is too long.
        ample = _AMPLE * self.max_tokens
        whole = self._ids([text[:ample] for text in texts])
        _check_not_empty(whole)
        truncated = np.zeros(len(texts), bool)
        for n, (text, ids) in enumerate(zip(texts, whole, strict=True)):
            if len(text) > ample or len(ids) > self.max_tokens:
                whole[n], truncated[n] = self._fit(text)
        prefix = self.prefix_C.tobytes()
        C, most = len(self.prefix_C), self.most_shared or self.max_tokens
        shared = [C < len(ids) <= most and ids[:C].tobytes() == prefix for ids in whole]
        own = [ids[C:] if is_shared else ids for ids, is_shared in zip(whole, shared, strict=True)]
        return PromptIds(own, np.array(shared, bool), truncated)

    def second_copy(self, tokens: int) -> int:
        """Return the position of the text's last copy in a prompt of so many ids, prefix included.

        Raises: UserError for a template that is not in pieces, where a copy has no certain borders.
        """
        if self._ids.pieces is None:
            raise UserError(
                f"template {self.template.name} is not in pieces, so no copy of the text has "
                "borders; give one like that of the method echo"
            )
        return self._ids.pieces.copy_start(tokens)

    def _fit(self, text: str) -> tuple[np.ndarray, bool]:
        """Return the ids of the longest beginning of the text that fits, and if it is shorter."""
        if self._ids.pieces is not None:
            return self._ids.pieces([text], self.max_tokens)[0]
        size = _AMPLE * self.max_tokens
        spans = self._ids.tokenizer.spans(self.template.fill(text[:size]))
        while size < len(text) and len(spans) < self.max_tokens + _REACH:
            size *= 2
            spans = self._ids.tokenizer.spans(self.template.fill(text[:size]))
        if len(spans) + len(self.tokenizer.first_ids) <= self.max_tokens:
            (ids,) = self._ids([text])
            return ids, False
        longest = min(self._guess(text[:size], spans) + _REACH, len(text) - 1)
        return next(i for i in self._shortened(text, longest) if len(i) <= self.max_tokens), True

    def _guess(self, text: str, spans: list[tuple[int, int]]) -> int:
        """Return about how many characters fit, from where the ids of the whole prompt end."""
        before = self.template.head + text
        stripped = len(before) - len(before.lstrip())
        after = sum(start >= len(before) - stripped for start, _ in spans)
        kept = self.max_tokens - len(self.tokenizer.first_ids) - after
        return max(0, spans[kept - 1][1] + stripped - len(self.template.head)) if kept > 0 else 0

    def _shortened(self, text: str, longest: int) -> Iterator[np.ndarray]:
        """Yield the prompt's ids for ever shorter beginnings of the text, down to none of it.

        One character more can mean one id less, so each length is tried, in batches.
        """
        for top in range(longest, -1, -_BATCH):
            ends = range(top, max(top - _BATCH, -1), -1)
            yield from self._ids([text[:end] for end in ends])


class _Ids:
    """From texts to the ids of whole prompts.

    Attributes:
        pieces: for a template in pieces.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, placeholder_id: int | None = None):
        self.template, self.tokenizer = template, tokenizer
        self.pieces = PieceIds(template, tokenizer) if template.pieces else None
        self._placeholder_id = placeholder_id

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.pieces is not None:
            return [ids for ids, _ in self.pieces(texts)]
        found = self.tokenizer.ids([self.template.fill(text) for text in texts])
        if self._placeholder_id is None:
            return found
        return [np.where(ids == self._placeholder_id, 0, ids) for ids in found]

    def prefix(self) -> Int32[np.ndarray, " C"]:
        """Return the ids that all prompts begin with, up to the placeholder."""
        if self._placeholder_id is None:
            return _stable(self(_PROBES))
        (ids,) = self.tokenizer.ids([self.template.fill("")])
        return ids[: int(np.argmax(ids == self._placeholder_id))]


def _check_not_empty(ids: Sequence[np.ndarray]) -> None:
    """Refuse a prompt of no ids: an empty text, no template and a vocabulary without BOS."""
    empty = [n for n, own in enumerate(ids) if not len(own)]
    if empty:
        raise UserError(
            f"text {empty[0]} has no tokens, since the template adds none and the tokenizer has no "
            "BOS; leave empty texts out or use a template with words"
        )


def stable_prefix(template: Template, tokenizer: Tokenizer) -> Int32[np.ndarray, " C"]:
    """Return the longest ids that all prompts begin with, always shorter than a whole prompt."""
    return _stable(_Ids(template, tokenizer)(_PROBES))


def _stable(probes: Sequence[np.ndarray]) -> Int32[np.ndarray, " C"]:
    prompts = [ids.tolist() for ids in probes]
    shortest = min(len(ids) for ids in prompts)
    return np.array(commonprefix(prompts)[: shortest - 1], np.int32)  # noqa: RUF071


def continue_alike(a: Prompt, b: Prompt) -> bool:
    """Return whether sentences have the same ids after the stable prefixes of both prompts.

    Checked with sentences that begin in every awkward way. The ids of a sentence then serve both.
    """
    ours, theirs = a(_PROBES), b(_PROBES)
    same = (np.array_equal(x, y) for x, y in zip(ours.ids, theirs.ids, strict=True))
    return bool(np.array_equal(ours.shared, theirs.shared)) and all(same)


def show(template: Template, tokenizer: Tokenizer, text: str) -> str:
    """Return the prompt of one text token by token: position, id, vocabulary entry, characters.

    A bar after the position marks the ids of the stable prefix.
    """
    filled = paired(template.fill(text))
    (ids,) = tokenizer.ids([filled])
    prefix_C = stable_prefix(template, tokenizer)
    C = len(prefix_C) if np.array_equal(ids[: len(prefix_C)], prefix_C) else 0
    covered = ["", *(filled[start:end] for start, end in tokenizer.spans(filled))]
    entries = [tokenizer.entry(number) for number in ids]
    lines = [
        f"{n:5} {'|' if n < C else ' '} {number:6}  {entry!r:16} {characters!r}"
        for n, (number, entry, characters) in enumerate(zip(ids, entries, covered, strict=True))
    ]
    return "\n".join([f"{filled!r}: {len(ids)} tokens, {C} of them shared", *lines])
