"""The `prompteol` command: encode a corpus, see a model's words for a text, see a prompt's tokens.

prompteol encode --model facebook/opt-2.7b --input texts.txt --output vectors.npy
prompteol words --model facebook/opt-2.7b "A jockey riding a horse."
prompteol show --model facebook/opt-2.7b "A jockey riding a horse."
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import tyro

from prompteol_jax import corpus, shards
from prompteol_jax.commands import run_command
from prompteol_jax.options import ModelOptions
from prompteol_jax.progress import progress_bar

if TYPE_CHECKING:
    from prompteol_jax.embedder import Embedder

JOINS: Final = {".npy": shards.join_npy, ".parquet": shards.join_parquet}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions(ModelOptions):
    """Encodes every text of a file to a float32 vector, in bfloat16 unless told otherwise.

    Repeat a command that was interrupted and it goes on where it stopped, also on another mesh.
    """

    input: Path
    """.txt, one text a line (a line ends at \\n, one \\r before it is dropped); .jsonl, .csv or
    .parquet with a column `text`; `-` for lines from standard input."""
    output: Path
    """.npy: float32 [n, D]; .parquet: column `embedding`; or a folder: shards and manifest.json."""
    clean: bool = False
    """Rewrite each text with the punctuation rules of the original's evaluation."""
    normalize: bool = False
    """Scale every vector to length one."""
    overwrite: bool = False
    """Replace an output that exists, and parts of a run with other settings."""
    shard_rows: int = 16384
    """Texts of a shard: what a kill can cost, and about what is held in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsOptions(ModelOptions):
    """Prints the most likely next tokens after each text's prompt, in float32 by default."""

    texts: tyro.conf.Positional[tuple[str, ...]]
    """Texts to sum up."""
    k: Annotated[int, tyro.conf.arg(aliases=("-k",))] = 10
    """Tokens for each text."""
    json: Path | None = None
    """File for the tokens and their probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Prints a prompt token by token, with a bar where its ids are the template's shared prefix."""

    text: tyro.conf.Positional[str]
    """Text to put into the template."""
    model: str
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny`."""
    template: str = "eol"
    """A template's name (eol, eol-icl-2.7b, ...) or file."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in COMMANDS.items()},
        prog="prompteol",
        description="PromptEOL sentence embeddings from OPT and LLaMA.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    run = next(run for kind, run in COMMANDS.values() if type(options) is kind)
    run_command("prompteol", run, options)


def encode(options: EncodeOptions) -> None:
    """Encode a corpus; every wrong input is refused before the model is loaded."""
    parts = _check_output(options)
    with corpus.opened(options.input, spool=options.output.parent) as texts:
        settings = _settings(options)
        chunks = corpus.survey(texts, options.shard_rows)
        invalid = texts.invalid
        with shards.opened(parts, settings, chunks, overwrite=options.overwrite) as vectors:
            closing = [f"{invalid} with invalid UTF-8"] if invalid else []
            closing += _finish(options, texts, vectors)
            if parts != options.output:
                JOINS[options.output.suffix.lower()](vectors, options.output)
                vectors.remove()
    shape = f"float32 [{vectors.rows}, {vectors.width}]"
    sys.stderr.write(f"{options.output}: {shape}; {', '.join(closing)}\n")


def _finish(options: EncodeOptions, texts: corpus.Corpus, vectors: shards.Shards) -> list[str]:
    """Load the model and encode, if anything is missing; return what to say about it."""
    there = len(vectors.chunks) - len(vectors.missing)
    said = [f"{there} of {len(vectors.chunks)} shards were there"] if there else []
    said += [f"{vectors.damaged} damaged shards anew"] if vectors.damaged else []
    if vectors.width is not None and not vectors.missing:
        return [*said, "nothing left to encode"]
    embedder = options.load("bfloat16")
    vectors.begin(embedder.width)
    return said + _encode_missing(options, embedder, texts, vectors)


def words(options: WordsOptions) -> None:
    """Print a table of the most likely next tokens for each text."""
    from rich import console, table, text

    if not options.texts or options.k < 1:
        raise ValueError(f"give one text or more, and k >= 1; got {options.texts}, k {options.k}")
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
        options.json.write_text(content + "\n", encoding="utf-8")


def show(options: ShowOptions) -> None:
    """Print a prompt token by token; no weights are read."""
    from prompteol_jax import hub, models, tokens
    from prompteol_jax.models import tiny
    from prompteol_jax.template import read_template

    template = read_template(options.template)
    if options.model == tiny.NAME:
        tokenizer = tiny.tiny_tokenizer()
    else:
        folder = hub.local_folder(options.model)
        tokenizer = tokens.load_tokenizer(folder, vocab_size=models.read_config(folder).V)
    sys.stdout.write(tokens.show(template, tokenizer, options.text) + "\n")


COMMANDS: Final[dict[str, tuple[type, Callable[[Any], object]]]] = {
    "encode": (EncodeOptions, encode),
    "words": (WordsOptions, words),
    "show": (ShowOptions, show),
}


def _check_output(options: EncodeOptions) -> Path:
    """Return the folder of shards: the output itself, or a neighbour of the file asked for."""
    output, parent = options.output, options.output.parent
    problems = []
    if options.shard_rows < 1:
        problems.append(f"--shard-rows {options.shard_rows}; it takes 1 or more")
    if not parent.is_dir():
        problems.append(f"the folder {parent} of --output does not exist; make it first")
    elif not os.access(parent, os.W_OK):
        problems.append(f"the folder {parent} of --output cannot be written to")
    is_file = output.suffix.lower() in JOINS and not output.is_dir()
    if not is_file and output.suffix and not output.is_dir():
        problems.append(
            f"--output {output} has the unknown suffix {output.suffix!r}; give {', '.join(JOINS)}, "
            "or a folder, which has none unless it exists"
        )
    parts = output.with_name(f"{output.name}.parts") if is_file else output
    if output.exists() and options.input.exists() and output.samefile(options.input):
        problems.append(f"--output {output} is the input")
    elif output.is_file() and not (options.overwrite or (parts / shards.MANIFEST).exists()):
        problems.append(f"--output {output} exists; --overwrite replaces it")
    if problems:
        raise ValueError("; ".join(problems))
    return parts


def _settings(options: EncodeOptions) -> Mapping[str, Any]:
    """Whatever decides the vectors; mesh and batch tokens change their rounding alone."""
    from prompteol_jax import axes, hub
    from prompteol_jax.models import tiny
    from prompteol_jax.pretrained import find_adapter
    from prompteol_jax.template import read_template

    axes.parse_mesh(options.mesh)
    template = read_template(options.template)
    adapter = find_adapter(options.adapter) if options.adapter else None
    folder = None if options.model == tiny.NAME else hub.local_folder(options.model)
    return {
        "model": options.model,
        "weights": shards.fingerprint(folder) if folder else tiny.NAME,
        "adapter": shards.fingerprint(adapter) if adapter else None,
        "template": template.name,
        "prompt": f"{template.head}{{}}{template.suffix}",
        "dtype": options.dtype or "bfloat16",
        "layer": options.layer,
        "pooling": options.pooling,
        "clean": options.clean,
        "normalize": options.normalize,
        "shard_rows": options.shard_rows,
    }


def _encode_missing(
    options: EncodeOptions, embedder: Embedder, texts: corpus.Corpus, vectors: shards.Shards
) -> list[str]:
    """Encode what a run lacks; return what to say about it."""
    from prompteol_jax.encode import encode as jitted
    from prompteol_jax.encode import encode_mean
    from prompteol_jax.template import clean_sentence

    missing = set(vectors.missing)
    rows = sum(vectors.chunks[number].rows for number in missing)
    distinct = truncated = 0
    start = time.perf_counter()
    # A single shard moves the model's own bar, several move one over all of them.
    is_single = len(missing) == 1
    with progress_bar("encode", rows, False if is_single else None) as advance, _quiet():
        for number, chunk in enumerate(texts.chunks(options.shard_rows)):
            if number not in missing:
                continue
            if corpus.Chunk(len(chunk), corpus.digest(chunk)) != vectors.chunks[number]:
                raise ValueError(f"{texts.name} has changed while it was encoded; start again")
            sentences = [clean_sentence(text) for text in chunk] if options.clean else chunk
            bar = None if is_single else False
            vectors.write(
                number, embedder.encode(sentences, normalize=options.normalize, progress=bar)
            )
            distinct += embedder.report.distinct
            truncated += embedder.report.truncated
            advance(len(chunk))
    if vectors.missing:
        raise ValueError(f"{texts.name} has become shorter while it was encoded; start again")
    seconds = time.perf_counter() - start
    shapes = jitted._cache_size() + encode_mean._cache_size()
    return [
        f"{rows} encoded, {distinct} of them distinct within their shards",
        f"{truncated} cut to {embedder.pretrained.config.P} tokens",
        f"{rows / seconds:,.1f} sentences/s",
        f"{shapes} compiled shapes",
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the count of cut texts to the closing line, instead of a warning for every shard."""
    log = logging.getLogger("prompteol_jax")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


if __name__ == "__main__":
    main()
