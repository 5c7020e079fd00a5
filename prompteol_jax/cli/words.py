"""`prompteol words` and `prompteol show`: look at what a prompt makes of a text."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from prompteol_jax.cli.options import ModelOptions, flag
from prompteol_jax.storage import atomic, json_files, paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsOptions(ModelOptions):
    """Prints the most likely next tokens after each text's prompt, in float32 by default."""

    texts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT ...")]
    """Texts to sum up."""
    k: Annotated[int, tyro.conf.arg(aliases=("-k",))] = flag(10, at_least=1)
    """Tokens for each text."""
    json: Path | None = None
    """File for the tokens and their probabilities."""

    def problems(self) -> list[str]:
        """List what does not fit: there must be a text."""
        return [] if self.texts else ["give one text or more"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Prints a prompt token by token, with a bar where its ids are the template's shared prefix."""

    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT")]
    """Text to put into the template."""
    model: str
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny`."""
    template: str = "eol"
    """A template's name (eol, eol-icl-2.7b, ...) or file."""


def words(options: WordsOptions) -> None:
    """Print a table of the most likely next tokens for each text."""
    from rich import console, table, text

    _check_reads_a_head(options)
    output = paths.as_path(options.json) if options.json else None
    atomic.prepare(output)
    embedder = options.load("float32")
    found = [embedder.words(sentence, options.k) for sentence in options.texts]
    header = f"{embedder.model_name}, template {embedder.template.name}, {embedder.dtype}"
    shown = console.Console()
    for sentence, ranked in zip(options.texts, found, strict=True):
        grid = table.Table(title=text.Text(f"{sentence}\n{header}"), title_justify="left")
        grid.add_column("token")
        grid.add_column("probability", justify="right")
        for token, probability in ranked:
            grid.add_row(text.Text(repr(token)), f"{probability:.4f}")
        shown.print(grid)
    if output:
        result = {
            "model": embedder.model_name,
            "template": embedder.template.name,
            "dtype": embedder.dtype,
            "texts": [
                {"text": sentence, "words": [{"token": t, "probability": p} for t, p in ranked]}
                for sentence, ranked in zip(options.texts, found, strict=True)
            ],
        }
        json_files.write_object(output, result)


def _check_reads_a_head(options: ModelOptions) -> None:
    """Refuse an inner layer and a pooled mean before any weight is read."""
    from prompteol_jax.encoding import lm_head
    from prompteol_jax.models import build
    from prompteol_jax.pretrained import source

    inner, one, method = False, True, options.record()
    layer = options.layer if method is None else method.layer
    pooling = options.pooling if method is None else method.pooling
    if method is not None:
        several = len(method.prompts) > 1 or any(view.transform for view in method.prompts)
        one = not (several or method.collect or method.post)
    if layer is not None:
        depth = source.resolve_config(options.model).L
        inner = build.resolve_layer(layer, depth) is not None
    lm_head.check_reads(inner=inner, pooling=pooling, one=one)


def show(options: ShowOptions) -> None:
    """Print a prompt token by token; no weights are read."""
    from prompteol_jax.pretrained import source
    from prompteol_jax.text import prompt
    from prompteol_jax.text.template import read_template

    template = read_template(options.template)
    tokenizer = source.resolve(options.model).tokenizer()
    sys.stdout.write(prompt.show(template, tokenizer, options.text) + "\n")
