"""Flags of the commands that rank documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prompteol_jax.cli.options import ModelOptions, flag
from prompteol_jax.cli.several import load_several, with_prompt
from prompteol_jax.embedder import Embedder
from prompteol_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RankingOptions(ModelOptions):
    """Flags of every command that ranks documents."""

    query_template: str | None = None
    """Template of queries; --template by default."""
    document_template: str | None = None
    """Template of documents; --template by default."""
    query_method: str | None = None
    """Method of queries: a name, record or folder; --method or their template by default."""
    document_method: str | None = None
    """Method of documents; --method or their template by default."""
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

    def problems(self) -> list[str]:
        """List what does not fit between the prompts of the two sides."""
        found = []
        for side in ("query", "document"):
            if getattr(self, f"{side}_template") is None:
                continue
            if getattr(self, f"{side}_method") is not None:
                found.append(f"--{side}-method decides the template: drop --{side}-template")
            elif self.method is not None:
                found.append(f"--{side}-template has no effect with --method: give --{side}-method")
        if self.query_method is not None and self.document_method is not None:
            usual = {"method": None, "template": "eol", "pooling": "last"}
            given = [name for name, value in usual.items() if getattr(self, name) != value]
            found += [f"--{name} has no effect: both sides have a method" for name in given]
        return found

    def sides(self) -> Sides:
        """Load the model once, with the prompt of each side; see `Embedder.from_pretrained`.

        Raises: UserError where the vectors of the sides have different widths.
        """
        sides = Sides(*load_several([self.side("query"), self.side("document")], "float32"))
        widths = sides.queries.width, sides.documents.width
        if widths[0] != widths[1]:
            raise UserError(
                f"queries have {widths[0]} features and documents {widths[1]}, so they have no "
                "cosine; give methods of one width"
            )
        return sides

    def side(self, name: Literal["query", "document"]) -> RankingOptions:
        """Return the options with the prompt of one side as that of the model."""
        template, method = getattr(self, f"{name}_template"), getattr(self, f"{name}_method")
        if template is None and method is None:
            return self
        return with_prompt(self, template=template, method=method)

    def work_on_documents(self) -> dict[str, Any]:
        """Describe all that decides the documents' vectors; see `ModelOptions.work`."""
        own = {name: getattr(self, name) for name in ("clean", "shard_rows")}
        return self.side("document").work("float32") | own


@dataclass(frozen=True)
class Sides:
    """One model with the prompt of queries, and with that of documents."""

    queries: Embedder
    documents: Embedder

    @property
    def template(self) -> str:
        """Names of the templates."""
        return _both(*(side.template.name for side in (self.queries, self.documents)))

    @property
    def method(self) -> str | None:
        """Names of the methods; None where neither side has one."""
        methods = [side.method for side in (self.queries, self.documents)]
        names = ["none" if method is None else method.name for method in methods]
        return None if methods == [None, None] else _both(*names)


def _both(queries: str, documents: str) -> str:
    return queries if queries == documents else f"{queries}, documents {documents}"
