"""What a retrieval task is: documents that are read as a stream, judged queries, judgments."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int

from eval.retrieval import lines
from eval.retrieval.metrics import Qrels
from prompteol_jax.storage.corpus import Corpus, TextFile, digest

_CHUNK: Final = 4096  # documents that are read together


@dataclass(frozen=True)
class Texts:
    """Texts with ids, in the order of their file."""

    ids: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, ids: Collection[str]) -> Texts:
        """Return the texts whose ids are among these."""
        kept = [n for n, name in enumerate(self.ids) if name in ids]
        return Texts([self.ids[n] for n in kept], [self.texts[n] for n in kept])


@dataclass(frozen=True)
class Documents:
    """Documents: their ids and lengths are held, their texts are read from the file each time.

    Attributes:
        characters_n: length of each text.
        corpus: the texts, in the order of the ids.
    """

    ids: list[str]
    characters_n: Int[np.ndarray, "n"]
    corpus: Corpus

    @classmethod
    def read(cls, path: Path, problems: lines.Problems, key: str, text: lines.Text) -> Documents:
        """Read ids and lengths from a file; see `lines.unique`."""
        ids, characters = [], []
        for name, found in lines.unique(path, problems, key, text):
            ids.append(name)
            characters.append(len(found))
        reader = partial(lines.texts, text=text)
        file = TextFile(str(path), partial(lines.opened, path), reader)
        corpus = Corpus(str(path), {"": file})
        return cls(ids, np.array(characters, np.int64), corpus)

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self) -> Iterator[str]:
        """Read every text."""
        for chunk in self.corpus.chunks(_CHUNK):
            yield from chunk

    def chosen(self, ids: Collection[str]) -> dict[str, str]:
        """Read the texts of some documents, by id."""
        pairs = zip(self.ids, self.texts(), strict=True)
        return {name: text for name, text in pairs if name in ids}


@dataclass(frozen=True)
class Retrieval:
    """A retrieval task: documents, the judged queries, and their judgments.

    Attributes:
        unjudged: queries of the file without a judgment in this split; they are left out.
    """

    name: str
    split: str
    corpus: Documents
    queries: Texts
    qrels: Qrels
    unjudged: int = 0

    def sha256(self) -> str:
        """Digest queries, judgments, and the documents' ids and texts."""
        content = hashlib.sha256()
        judged = [
            f"{query}\t{document}\t{relevance}"
            for query, judgments in self.qrels.items()
            for document, relevance in judgments.items()
        ]
        parts = (self.queries.ids, self.queries.texts, judged, self.corpus.ids)
        for part in (*parts, *self.corpus.corpus.chunks(_CHUNK)):
            content.update(digest(part).encode())
        return content.hexdigest()

    def relevant(self, query: str) -> list[str]:
        """Return the ids of a query's relevant documents, the most relevant first."""
        judged = self.qrels[query]
        return sorted((d for d in judged if judged[d] > 0), key=lambda d: -judged[d])
