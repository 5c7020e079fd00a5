"""The `prompteol` command: encode a corpus, look at words and prompts, verify, compare results.

prompteol encode --model facebook/opt-2.7b --input texts.txt --output vectors.npy
prompteol words --model facebook/opt-2.7b "A jockey riding a horse."
prompteol show --model facebook/opt-2.7b "A jockey riding a horse."
prompteol verify --model facebook/opt-2.7b --json certificate.json
prompteol serve --model facebook/opt-2.7b --port 8000
prompteol compare a.json b.json
prompteol export runs/opt-1.3b --to hf --output merged

This is the door to all packages, so it may import what lies above the library; nothing imports it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from eval.compare import command as compare
from prompteol_jax.cli.commands import run_one_of
from prompteol_jax.cli.encode import EncodeOptions, encode_corpus
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.cli.verify import VerifyOptions, verify_checkpoint
from prompteol_jax.errors import UserError
from prompteol_jax.export.export import ExportOptions, export_run
from prompteol_jax.serve.options import ServeOptions
from prompteol_jax.storage import paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsOptions(ModelOptions):
    """Prints the most likely next tokens after each text's prompt, in float32 by default."""

    texts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TEXT ...")]
    """Texts to sum up."""
    k: Annotated[int, tyro.conf.arg(aliases=("-k",))] = 10
    """Tokens for each text."""
    json: Path | None = None
    """File for the tokens and their probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Prints a prompt token by token, with a bar where its ids are the template's shared prefix."""

    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT")]
    """Text to put into the template."""
    model: str
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny`."""
    template: str = "eol"
    """A template's name (eol, eol-icl-2.7b, ...) or file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    description = "PromptEOL sentence embeddings from OPT, LLaMA and Qwen3."
    run_one_of("prompteol", description, COMMANDS, argv)


def words(options: WordsOptions) -> None:
    """Print a table of the most likely next tokens for each text."""
    from rich import console, table, text

    if not options.texts or options.k < 1:
        raise UserError(f"give one text or more, and k >= 1; got {options.texts}, k {options.k}")
    _check_reads_a_head(options)
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
    if options.json:
        result = {
            "model": embedder.model_name,
            "template": embedder.template.name,
            "dtype": embedder.dtype,
            "texts": [
                {"text": sentence, "words": [{"token": t, "probability": p} for t, p in ranked]}
                for sentence, ranked in zip(options.texts, found, strict=True)
            ],
        }
        content = json.dumps(result, indent=2, ensure_ascii=False)
        paths.as_path(options.json).write_text(content + "\n", encoding="utf-8")


def _check_reads_a_head(options: ModelOptions) -> None:
    """Refuse an inner layer and a pooled mean before any weight is read."""
    from prompteol_jax.encoding import lm_head
    from prompteol_jax.models import build
    from prompteol_jax.pretrained import source

    inner = False
    if options.layer is not None:
        depth = source.resolve_config(options.model).L
        inner = build.resolve_layer(options.layer, depth) is not None
    lm_head.check_reads(inner=inner, pooling=options.pooling)


def show(options: ShowOptions) -> None:
    """Print a prompt token by token; no weights are read."""
    from prompteol_jax.pretrained import source
    from prompteol_jax.text import prompt
    from prompteol_jax.text.template import read_template

    template = read_template(options.template)
    tokenizer = source.resolve(options.model).tokenizer()
    sys.stdout.write(prompt.show(template, tokenizer, options.text) + "\n")


def serve(options: ServeOptions) -> None:
    """Serve vectors over HTTP until a signal ends it."""
    try:
        from prompteol_jax.serve import command
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'prompteol-jax[serve]'") from error
    command.serve(options)


COMMANDS: Final[dict[str, tuple[type, Callable[[Any], object]]]] = {
    "encode": (EncodeOptions, encode_corpus),
    "words": (WordsOptions, words),
    "show": (ShowOptions, show),
    "verify": (VerifyOptions, verify_checkpoint),
    "serve": (ServeOptions, serve),
    "compare": (compare.CompareOptions, compare.run),
    "export": (ExportOptions, export_run),
}
