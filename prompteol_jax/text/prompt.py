"""From texts to ids: the prompt around each sentence, and the ids that all prompts share.

The prompt of every sentence starts with the same characters, so the keys and values of its first
ids can be computed once. But a tokenizer merges across the border between template and sentence:
`"` and `(` may become one token. What all sentences share is therefore not the template tokenized
alone; `stable_prefix` finds it by filling the template with sentences that begin in every awkward
way, and `Prompt` still compares each prompt with it and says which ones differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int32

from prompteol_jax.errors import UserError, nearest
from prompteol_jax.text.pieces import PieceIds
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import Tokenizer, paired

_AMPLE: Final = 16  # characters looked at for each id that fits, before looking at more
_REACH: Final = 16  # characters beyond the guess that are tried; 3 were the most that ever fitted
_BATCH: Final = 8  # lengths tried together

Truncation = Literal["end", "middle", "error"]

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
    truncated: Bool[np.ndarray, " n"]  # the sentence lost characters


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
        truncate: Truncation = "end",
        placeholder: str | None = None,
        most_shared: int | None = None,
    ):
        """Find the stable prefix.

        Args:
            max_tokens: largest number of ids of a prompt, BOS included; at most the model's
                positions.
            truncate: what happens to a text that does not fit: it loses its `end`, or its `middle`,
                so that as much of its end is kept as of its beginning; or it is an `error`.
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
        self.truncate: Truncation = truncate
        self.prefix_C = self._ids.prefix()
        self.suffix_tokens = max(1, len(alone) - len(self.prefix_C))

    @property
    def most_own(self) -> int:
        """Largest number of ids after the stable prefix."""
        bounds = (self.max_tokens, self.most_shared)
        return min(bound for bound in bounds if bound is not None) - len(self.prefix_C)

    def __call__(self, texts: Sequence[str]) -> PromptIds:
        """Return the ids of each sentence's prompt.

        Where a prompt would have more than `max_tokens` ids, the sentence is cut, at its end to its
        longest beginning, in characters, that fits; template and demonstrations stay whole.

        Raises: UserError with `truncate` `error`, naming the first text that does not fit.
        """
        # No tokenizer needs all of an endless text to tell that it is too long.
        ample = _AMPLE * self.max_tokens
        whole = self._ids([text[:ample] for text in texts])
        _check_not_empty(whole)
        truncated = np.zeros(len(texts), bool)
        for n, (text, ids) in enumerate(zip(texts, whole, strict=True)):
            if len(text) > ample or len(ids) > self.max_tokens:
                whole[n], truncated[n] = self._fit(text)
        self._refuse_truncated(texts, truncated)
        prefix = self.prefix_C.tobytes()
        C, most = len(self.prefix_C), self.most_shared
        most = self.max_tokens if most is None else most
        shared = [C < len(ids) <= most and ids[:C].tobytes() == prefix for ids in whole]
        own = [ids[C:] if is_shared else ids for ids, is_shared in zip(whole, shared, strict=True)]
        return PromptIds(own, np.array(shared, bool), truncated)

    def whole(self, text: str) -> Int32[np.ndarray, " T"]:
        """Return the ids of a text's prompt with the stable prefix, and without any cut."""
        (ids,) = self._ids([text])
        return ids

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

    def _refuse_truncated(self, texts: Sequence[str], truncated: np.ndarray) -> None:
        if self.truncate == "error" and truncated.any():
            first = texts[int(np.flatnonzero(truncated)[0])]
            raise UserError(
                f"{truncated.sum()} texts do not fit a prompt of {self.max_tokens} tokens, the "
                f"first begins {first[:60]!r}; cut texts with truncate end or middle, or allow "
                "more max_tokens where the model has the positions"
            )

    def _fit(self, text: str) -> tuple[np.ndarray, bool]:
        """Return the ids of as much of the text as fits, and if that is not all of it."""
        if self._ids.pieces is not None:
            return self._ids.pieces([text], self.max_tokens, middle=self.truncate == "middle")[0]
        size = _AMPLE * self.max_tokens
        spans = self._ids.tokenizer.spans(self.template.fill(text[:size]))
        while size < len(text) and len(spans) < self.max_tokens + _REACH:
            size *= 2
            spans = self._ids.tokenizer.spans(self.template.fill(text[:size]))
        if len(spans) + len(self.tokenizer.first_ids) <= self.max_tokens:
            (ids,) = self._ids([text])
            return ids, False
        if self.truncate == "middle":
            return self._first_that_fits(self._ends(text)), True
        longest = min(self._guess(text[:size], spans) + _REACH, len(text) - 1)
        return self._first_that_fits(text[:end] for end in range(longest, -1, -1)), True

    def _guess(self, text: str, spans: list[tuple[int, int]]) -> int:
        """Return about how many characters fit, from where the ids of the whole prompt end."""
        before = self.template.head + text
        stripped = len(before) - len(before.lstrip())
        after = sum(start >= len(before) - stripped for start, _ in spans)
        kept = self.max_tokens - len(self.tokenizer.first_ids) - after
        return max(0, spans[kept - 1][1] + stripped - len(self.template.head)) if kept > 0 else 0

    def _ends(self, text: str) -> Iterator[str]:
        """Yield beginning and end of a text, joined, of as many ids each, ever fewer, to none."""
        half = self.max_tokens // 2 + _REACH
        size = _AMPLE * self.max_tokens
        # Both ends of an endless text are enough once each has the ids that its half may have.
        while 2 * size < len(text) and min(map(len, self._halves(text, size))) < half:
            size *= 2
        first, last = self._halves(text, size)
        for kept in range(min(len(first) + len(last) - 1, self.max_tokens), 0, -1):
            head, tail = min(kept - kept // 2, len(first)), min(kept // 2, len(last))
            yield text[: first[head - 1][1]] + (text[last[-tail][0] :] if tail else "")
        yield ""

    def _halves(self, text: str, size: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the characters of the ids of a text's two halves, or of so many at each end."""
        size = min(size, len(text) // 2)
        behind = len(text) - size
        first, last = (self.tokenizer.spans(part) for part in (text[:size], text[behind:]))
        return first, [(start + behind, end + behind) for start, end in last]

    def _first_that_fits(self, texts: Iterator[str]) -> np.ndarray:
        """Return the ids of the first text whose prompt fits; the last one is empty and does.

        One character more can mean one id less, so each is tried, in batches.
        """
        while True:
            for ids in self._ids(list(itertools.islice(texts, _BATCH))):
                if len(ids) <= self.max_tokens:
                    return ids


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


def check_length(max_tokens: int | None, truncate: str, positions: int | None = None) -> None:
    """Refuse a length that no prompt of a model may have, and an unknown way to cut texts.

    Args:
        positions: of the model, where it is known.
    Raises: UserError with what is allowed.
    """
    if max_tokens is not None and not 1 <= max_tokens <= (positions or max_tokens):
        most = "" if positions is None else f", at most the model's {positions} positions"
        raise UserError(f"max_tokens {max_tokens} is not allowed; give 1 or more{most}")
    known = get_args(Truncation)
    if truncate not in known:
        raise UserError(
            f"truncate {truncate!r} is not one of {', '.join(known)}{nearest(truncate, known)}"
        )


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


def split_at_tail(
    prompt: Prompt,
) -> tuple[list[np.ndarray], Int32[np.ndarray, " E"]] | None:
    """Return what sentences have between stable prefix and tail, and the ids of that tail.

    The tail is the longest ids that all prompts end in, always shorter than a text's own ids. The
    sentences begin and end in every awkward way; None where one does not continue the prefix.
    """
    ids, shared, _ = prompt(_PROBES)
    if not shared.all():
        return None
    tail_E = _stable([own[::-1] for own in ids])[::-1]
    return [own[: len(own) - len(tail_E)] for own in ids], tail_E


def show(template: Template, tokenizer: Tokenizer, text: str) -> str:
    """Return the prompt of one text token by token: position, id, vocabulary entry, characters.

    A bar after the position marks the ids of the stable prefix.
    """
    filled = paired(template.fill(text))
    (ids,) = tokenizer.ids([filled])
    prefix_C = stable_prefix(template, tokenizer)
    C = len(prefix_C) if np.array_equal(ids[: len(prefix_C)], prefix_C) else 0
    covered = [
        *([""] * len(tokenizer.first_ids)),
        *(filled[start:end] for start, end in tokenizer.spans(filled)),
    ]
    entries = [tokenizer.entry(number) for number in ids]
    lines = [
        f"{n:5} {'|' if n < C else ' '} {number:6}  {entry!r:16} {characters!r}"
        for n, (number, entry, characters) in enumerate(zip(ids, entries, covered, strict=True))
    ]
    return "\n".join([f"{filled!r}: {len(ids)} tokens, {C} of them shared", *lines])
