"""Vocabularies that are recognized, with texts whose ids are known."""

from __future__ import annotations

from typing import Final, NamedTuple

import tokenizers


class Vocabulary(NamedTuple):
    """A vocabulary, recognized by some of its entries, and the ids that it must give for a text."""

    name: str
    entries: dict[str, int]
    golden: dict[str, list[int]]
    has_bos: bool = True


_PROMPT: Final = 'This sentence : "A jockey riding a horse." means in one word:"'
KNOWN: Final = (
    Vocabulary(
        "OPT",
        {"Hello": 31414, "\u0120my": 127, "\u0120dog": 2335, "\u0120cute": 11962},
        {
            "Hello, my dog is cute": [2, 31414, 6, 127, 2335, 16, 11962],
            _PROMPT: [
                *(2, 713, 3645, 4832, 22, 250, 1236, 16303, 5793, 10, 5253, 72, 839, 11, 65),
                *(2136, 36856),
            ],
        },
    ),
    Vocabulary(
        "LLaMA 1 and 2",
        {"\u2581Hello": 15043, "\u2581world": 3186},
        {
            "Hello world": [1, 15043, 3186],
            _PROMPT: [
                *(1, 910, 10541, 584, 376, 29909, 432, 10119, 364, 4821, 263, 10435, 1213, 2794),
                *(297, 697, 1734, 6160),
            ],
        },
    ),
    Vocabulary(
        "LLaMA 3",
        {"Hello": 9906, "\u0120world": 1917, "<|begin_of_text|>": 128000},
        {"Hello world": [128000, 9906, 1917]},
    ),
    Vocabulary(
        "Qwen 2, 2.5 and 3",
        {"Hello": 9707, "\u0120world": 1879, "<|endoftext|>": 151643},
        {
            "Hello world": [9707, 1879],
            "e\u0301": [963],  # NFC
        },
        has_bos=False,
    ),
)


def recognized(backend: tokenizers.Tokenizer) -> list[Vocabulary]:
    """Return the known vocabularies whose entries a backend has."""
    entry = backend.token_to_id
    return [
        known
        for known in KNOWN
        if all(entry(text) == number for text, number in known.entries.items())
    ]
