"""One tokenization for several prompts: a text's ids between the prefix and the end of each prompt.

The prompts of one method often differ only before the text and after the quote that follows it:

    prefix_C | body: the text's own ids | tail: the ids that every prompt of the template ends in

Where probes show that two prompts have the same bodies, a text is tokenized in the first one, and
its body is put before the other one's tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prompteol_jax.text.prompt import Prompt, PromptIds, differ_at_ends, stable_tail


class SharedBodies:
    """Bodies of texts for prompts that share them. Threads may share it.

    Attributes:
        tokenized: number of texts that a tokenizer was asked for.
    """

    def __init__(self, prompts: Sequence[Prompt]):
        self._tails = {prompt: stable_tail(prompt) for prompt in prompts}
        self._bodies: dict[str, np.ndarray] = {}
        self.tokenized = 0

    def ids(self, prompt: Prompt, texts: Sequence[str]) -> PromptIds:
        """Return the ids of texts in one of the prompts, as the prompt itself gives them."""
        bodies = dict(self._bodies)  # another call may forget them meanwhile
        unknown = [text for text in texts if text not in bodies]
        if unknown:
            bodies |= self._tokenize(prompt, unknown)
        tail = self._tails[prompt]
        found: list[np.ndarray | None] = [
            np.concatenate([bodies[text], tail]) if text in bodies else None for text in texts
        ]
        alone = [n for n, ids in enumerate(found) if ids is None or len(ids) > prompt.most_own]
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
        """Keep and return the bodies of texts that continue the prefix and are not cut."""
        self.tokenized += len(texts)
        end = len(self._tails[prompt])
        whole = zip(texts, *prompt(texts), strict=True)
        found = {
            text: ids[: len(ids) - end] for text, ids, shared, cut in whole if shared and not cut
        }
        self._bodies |= found
        return found


def sharing(prompts: Sequence[Prompt]) -> list[SharedBodies | None]:
    """Return what each prompt shares with others; None where it shares nothing."""
    groups: list[list[Prompt]] = []
    for prompt in prompts:
        for group in groups:
            if differ_at_ends(group[0], prompt):
                group.append(prompt)
                break
        else:
            groups.append([prompt])
    found = {
        id(prompt): shared
        for group in groups
        if len(group) > 1
        for shared in [SharedBodies(group)]
        for prompt in group
    }
    return [found.get(id(prompt)) for prompt in prompts]
