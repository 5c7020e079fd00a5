"""`SentenceEmbedder`: a folder of sentence-transformers as what it is, encoded by `Embedder`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from prompteol_jax.embedder import Embedder
from prompteol_jax.pretrained import hub
from prompteol_jax.pretrained.sentence_folder import (
    SentenceFolder,
    normalize,
    read_sentence_folder,
)


class SentenceEmbedder:
    """Encodes texts as sentence-transformers does: prompt, end token, pooling, dense modules.

    Vectors are those of sentence-transformers to rounding, but for texts that are cut: there the
    last token kept may differ.

    Attributes:
        folder: what the folder says of prompts, pooling and stages.
    """

    def __init__(self, folder: SentenceFolder, embedder: Embedder):
        """Encode with an embedder of the folder's model; `from_pretrained` loads one."""
        self.folder = folder
        self._first = embedder
        self._embedders: dict[str | None, Embedder] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path, **settings: Any) -> SentenceEmbedder:
        """Load a folder or hub name.

        Args:
            settings: those of `Embedder.from_pretrained`, except for template, layer, pooling and
                edits, which the folder decides.
        Raises: NotFound without `modules.json`; UserError for a module or a setting that is not
            supported; otherwise as `Embedder.from_pretrained`.
        """
        found = read_sentence_folder(hub.local_folder(model))
        own = {"template": "none", "pooling": found.pooling, "max_tokens": found.max_tokens}
        return cls(found, Embedder.from_pretrained(model, **own | settings))

    @property
    def prompts(self) -> dict[str, str]:
        """What may go before a text, by name."""
        return dict(self.folder.prompts)

    def embedder(self, prompt: str | None = None) -> Embedder:
        """Return the embedder of a prompt, before dense modules and normalization.

        Raises: UserError for an unknown name.
        """
        if prompt not in self._embedders:
            tokenizer = self._first.pretrained.tokenizer
            template = self.folder.template(tokenizer, prompt)
            self._embedders[prompt] = self._first.with_template(template)
        return self._embedders[prompt]

    def encode(
        self,
        texts: Iterable[str],
        prompt: str | None = None,
        *,
        normalize_vectors: bool = False,
        progress: bool | None = None,
    ) -> Float[np.ndarray, "n E"]:
        """Return one float32 vector per text.

        Args:
            prompt: name of the prompt; None for the folder's default.
        Raises: as `Embedder.encode`; UserError for an unknown prompt.
        """
        z_nE = self.folder.finish(self.embedder(prompt).encode(texts, progress=progress))
        return normalize(z_nE) if normalize_vectors else z_nE
