"""Flags of the commands that rank documents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompteol_jax.cli.options import ModelOptions, flag
from prompteol_jax.embedder import Embedder


@dataclass(frozen=True, kw_only=True)
class RankingOptions(ModelOptions):
    """Flags of every command that ranks documents."""

    query_template: str | None = None
    """Template of queries; --template by default."""
    document_template: str | None = None
    """Template of documents; --template by default."""
    clean: bool = False
    """Rewrite texts with the punctuation rules of the original's evaluation."""
    k: int = flag(1000, at_least=10)
    """Documents that are found for each query."""
    vectors: Path | None = None
    """Folder for the documents' vectors, one folder a task in it; a repeated command continues
    there and encodes nothing twice. By default a temporary one."""
    overwrite: bool = False
    """Replace vectors of other settings or documents in --vectors."""
    shard_rows: int = flag(16384, at_least=1)
    """Documents of a shard; a kill can cost two shards, and about so many are held in memory."""
    no_lexical: bool = False
    """Leave out BM25, the lexical reference; it holds all documents in memory."""
    run: Path | None = None
    """File for the ranking in TREC's form: query Q0 document rank score tag. The task's name is
    added where there are several."""
    json: Path | None = None
    """File for the scores and every detail."""
    report: Path | None = None
    """File for a page of HTML with the scores and drawings."""

    def sides(self) -> Sides:
        """Load the model with the template of each side; see `Embedder.from_pretrained`."""
        documents = self.of_documents().load("float32")
        template = self.query_template or self.template
        return Sides(documents.with_template(template), documents)

    def of_documents(self) -> RankingOptions:
        """Return the options with the documents' template as the template."""
        return dataclasses.replace(self, template=self.document_template or self.template)

    def work_on_documents(self) -> dict[str, Any]:
        """Describe all that decides the documents' vectors; see `ModelOptions.work`."""
        own = {name: getattr(self, name) for name in ("clean", "shard_rows")}
        return self.of_documents().work("float32") | own


@dataclass(frozen=True)
class Sides:
    """One model with the prompt of queries, and with that of documents."""

    queries: Embedder
    documents: Embedder

    @property
    def template(self) -> str:
        """Names of the templates."""
        names = [side.template.name for side in (self.queries, self.documents)]
        return names[0] if names[0] == names[1] else f"{names[0]}, documents {names[1]}"
