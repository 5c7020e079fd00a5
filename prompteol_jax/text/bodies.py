"""One tokenization for several prompts: a text's ids between the prefix and the end of each prompt.

The prompts of one method often differ only before the text and after the quote that follows it:

    prefix_C | body: the text's own ids | tail: the ids that every prompt of the template ends in

Where probes show that two prompts have the same bodies, a text is tokenized in the first one, and
its body is put before the other one's tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prompteol_jax.text.prompt import Prompt, PromptIds, split_at_tail


class SharedBodies:
    """Bodies of texts for prompts that share them. Threads may share it.

    Args:
        tails: stable tail of each prompt.

    Attributes:
        tokenized: number of texts that a tokenizer was asked for.
    """

    def __init__(self, tails: Mapping[Prompt, np.ndarray]):
        self._tails = tails
        self._bodies: dict[str, np.ndarray] = {}
        self.tokenized = 0

    def ids(self, prompt: Prompt, texts: Sequence[str]) -> PromptIds:
        """Return the ids of texts in one of the prompts, as the prompt itself gives them."""
        bodies = self._bodies  # `forget` puts another one in its place, and this one stays whole
        unknown = [text for text in texts if text not in bodies]
        if unknown:
            bodies.update(self._tokenize(prompt, unknown))
        tail, most = self._tails[prompt], prompt.most_own
        found: list[np.ndarray | None] = [
            np.concatenate([bodies[text], tail]) if text in bodies else None for text in texts
        ]
        alone = [n for n, ids in enumerate(found) if ids is None or len(ids) > most]
        shared, truncated = np.ones(len(texts), bool), np.zeros(len(texts), bool)
        if alone:
            self.tokenized += len(alone)
            for n, *own in zip(alone, *prompt([texts[n] for n in alone]), strict=True):
                found[n], shared[n], truncated[n] = own
        return PromptIds([ids for ids in found if ids is not None], shared, truncated)

    def forget(self) -> None:
        """Free the bodies."""
        self._bodies = {}

    def _tokenize(self, prompt: Prompt, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the bodies of texts that continue the prefix and are not cut."""
        self.tokenized += len(texts)
        end = len(self._tails[prompt])
        whole = zip(texts, *prompt(texts), strict=True)
        return {
            text: ids[: len(ids) - end] for text, ids, shared, cut in whole if shared and not cut
        }


def sharing(prompts: Sequence[Prompt]) -> list[SharedBodies | None]:
    """Return what each prompt shares with others; None where it shares nothing."""
    if len(prompts) < 2:  # nobody to share with
        return [None] * len(prompts)
    groups: dict[tuple[bytes, ...], dict[Prompt, np.ndarray]] = {}  # by bodies: tail of each prompt
    for prompt in prompts:
        split = split_at_tail(prompt)
        if split is not None:
            bodies, tail = split
            groups.setdefault(tuple(body.tobytes() for body in bodies), {})[prompt] = tail
    found: dict[Prompt, SharedBodies] = {}
    for tails in groups.values():
        if len(tails) > 1:
            found |= dict.fromkeys(tails, SharedBodies(tails))
    return [found.get(prompt) for prompt in prompts]
