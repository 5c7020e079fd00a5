"""`prompteol encode`: a corpus of any size to a file of vectors, resumed after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.progress import progress_bar
from prompteol_jax.storage import corpus, merge_shards, paths, shards

if TYPE_CHECKING:
    from prompteol_jax import distributed
    from prompteol_jax.embedder import Embedder

JOINS: Final = {".npy": merge_shards.join_npy, ".parquet": merge_shards.join_parquet}
_SAMPLE: Final = 1 << 20  # bytes at either end of a file of weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions(ModelOptions):
    """Encodes every text of a file to a float32 vector, in bfloat16 unless told otherwise.

    Repeat a command that was interrupted and it goes on where it stopped, also on another mesh.
    """

    input: Path
    """.txt, one text a line (a line ends at \\n, one \\r before it is dropped); .jsonl, .csv or
    .parquet with a column `text`; `-` for lines from standard input. gs:// as well."""
    output: Path
    """.npy: float32 [n, D]; .parquet: column `embedding`; or a folder: shards and manifest.json.
    gs:// as well."""
    clean: bool = False
    """Rewrite each text with the punctuation rules of the original's evaluation."""
    normalize: bool = False
    """Scale every vector to length one."""
    overwrite: bool = False
    """Replace an output that exists, and parts of a run with other settings."""
    shard_rows: int = 16384
    """Texts of a shard; a kill can cost two shards, and about so many are held in memory."""
    coordinator: str | None = None
    """HOST:PORT of process 0 of several, or `auto` on a TPU pod; each encodes shards of its own."""
    processes: int | None = None
    """How many processes there are; together they have the devices of --mesh."""
    process: int | None = None
    """Which of them this is, from 0."""


def encode_corpus(options: EncodeOptions) -> None:
    """Encode a corpus; every wrong input is refused before the model is loaded."""
    output = paths.as_path(options.output)
    parts = _check_output(options, output)
    spool = None if paths.is_bucket(output) else output.parent
    with corpus.opened(options.input, spool=spool) as texts:
        settings = _settings(options)
        chunks = corpus.survey(texts, options.shard_rows)
        closing = [f"{texts.invalid} with invalid UTF-8"] if texts.invalid else []
        part = _part(options)
        with shards.opened(
            parts,
            settings,
            chunks,
            overwrite=options.overwrite,
            process=part.process,
            processes=part.processes,
        ) as vectors:
            closing += _finish(options, texts, vectors, part)
            if parts != output and part.process == 0:
                JOINS[output.suffix.lower()](vectors, output)
                vectors.remove()
        if part.process > 0:
            vectors.wait_for_first(removed=parts != output)
    if part.process == 0:
        shape = f"float32 [{vectors.rows}, {vectors.width}]"
        sys.stderr.write(f"{output}: {shape}; {', '.join(closing)}\n")


def _part(options: EncodeOptions) -> distributed.Part:
    from prompteol_jax import distributed

    return distributed.work_apart(
        options.mesh, options.coordinator, options.processes, options.process
    )


def _finish(
    options: EncodeOptions, texts: corpus.Corpus, vectors: shards.Shards, part: distributed.Part
) -> list[str]:
    """Load the model and encode, if anything is missing; return what to say about it."""
    there = len(vectors.chunks) - len(vectors.missing)
    said = [f"{there} of {len(vectors.chunks)} shards were there"] if there else []
    said += [f"{vectors.damaged} damaged shards anew"] if vectors.damaged else []
    part.wait("every process knows what is missing")
    if vectors.width is not None and not vectors.missing:
        vectors.begin(vectors.width)
        return [*said, "nothing left to encode"]
    embedder = options.load("bfloat16", part.mesh)
    vectors.begin(embedder.width)
    part.wait("the run has begun")
    said += _encode_share(options, embedder, texts, vectors, part)
    if part.processes > 1 and part.process == 0:
        vectors.gather()
    return said


def _fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and both ends of the files that decide what a model computes.

    A fine-tuned copy differs from its base in every tensor, hence at the ends of its files.
    """
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".bin", ".json", ".model", ".txt"):
            continue
        size = path.stat().st_size
        content.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            content.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            content.update(file.read(_SAMPLE))
    return content.hexdigest()


def _check_output(options: EncodeOptions, output: Any) -> Any:
    """Return the folder of shards: the output itself, or a neighbor of the file asked for."""
    problems = []
    if options.shard_rows < 1:
        problems.append(f"--shard-rows {options.shard_rows}; it takes 1 or more")
    if not paths.is_bucket(output):  # which has no folders that could be missing
        problems += _unwritable(output.parent)
    paths.check_bucket(output)
    is_file = output.suffix.lower() in JOINS and not output.is_dir()
    if output == corpus.STDIN:
        problems.append("--output - is no file; vectors are not written to standard output")
    elif not is_file and output.suffix and not output.is_dir():
        problems.append(
            f"--output {output} has the unknown suffix {output.suffix!r}; give {', '.join(JOINS)}, "
            "or a folder, which has none unless it exists"
        )
    parts = output.with_name(f"{output.name}.parts") if is_file else output
    if _same(output, paths.as_path(options.input)):
        problems.append(f"--output {output} is the input")
    elif output.is_file() and not (is_file or output.suffix):
        problems.append(f"--output {output} is a file; a name without a suffix means a folder")
    elif output.is_file() and not (options.overwrite or (parts / shards.MANIFEST).exists()):
        problems.append(f"--output {output} exists; --overwrite replaces it")
    if options.coordinator is not None and options.input == corpus.STDIN:
        problems.append("--input - reaches one process only; give a file that all of them can read")
    if problems:
        raise UserError("; ".join(problems))
    return parts


def _unwritable(parent: Path) -> list[str]:
    if not parent.is_dir():
        return [f"the folder {parent} of --output does not exist; make it first"]
    if not os.access(parent, os.W_OK):
        return [f"the folder {parent} of --output cannot be written to"]
    return []


def _same(output: Any, given: Any) -> bool:
    if paths.is_bucket(output) or paths.is_bucket(given):
        return output == given
    return output.exists() and given.exists() and output.samefile(given)


def _settings(options: EncodeOptions) -> Mapping[str, Any]:
    """Whatever decides the vectors; mesh and batch tokens change their rounding alone."""
    from prompteol_jax.mesh import parse_mesh
    from prompteol_jax.pretrained import source
    from prompteol_jax.pretrained.load import find_adapter
    from prompteol_jax.text.template import read_template

    parse_mesh(options.mesh)
    template = read_template(options.template)
    adapter = find_adapter(options.adapter) if options.adapter else None
    found = source.resolve(options.model)
    return {
        "model": options.model,
        "weights": _fingerprint(found.folder) if found.folder else found.name,
        "adapter": _fingerprint(adapter) if adapter else None,
        "template": template.name,
        "prompt": f"{template.head}{{}}{template.suffix}",
        "dtype": options.dtype or "bfloat16",
        "quantize": options.quantize,
        "layer": options.layer,
        "pooling": options.pooling,
        "max_tokens": options.max_tokens,
        "clean": options.clean,
        "normalize": options.normalize,
        "shard_rows": options.shard_rows,
    }


def _encode_share(
    options: EncodeOptions,
    embedder: Embedder,
    texts: corpus.Corpus,
    vectors: shards.Shards,
    part: distributed.Part,
) -> list[str]:
    """Encode this process's share of what a run lacks; return what to say about it.

    A shard is written while the next one is encoded.
    """
    from prompteol_jax.text.template import clean_sentence

    rows = sum(vectors.chunks[number].rows for number in vectors.share)
    distinct = truncated = 0
    running = waited = 0.0
    start = time.perf_counter()
    # A single shard moves the model's own bar, several move one over all of them.
    is_primary, is_single = part.process == 0, len(vectors.share) == 1
    with (
        progress_bar("encode", rows, None if is_primary and not is_single else False) as advance,
        _quiet(),
        ThreadPoolExecutor(1) as writer,
    ):
        writing: Future[None] | None = None
        for number, sentences in _shares(texts, options.shard_rows, vectors):
            if options.clean:
                sentences = [clean_sentence(text) for text in sentences]
            bar = None if is_primary and is_single else False
            z_nD = embedder.encode(sentences, normalize=options.normalize, progress=bar)
            if writing is not None:
                writing.result()
            writing = writer.submit(vectors.write, number, z_nD)
            distinct += embedder.report.distinct
            truncated += embedder.report.truncated
            running += embedder.report.seconds
            waited += embedder.report.waited
            advance(len(sentences))
        if writing is not None:
            writing.result()
    seconds = time.perf_counter() - start
    by = f" by the first of {part.processes} processes" if part.processes > 1 else ""
    return [
        f"{rows} encoded{by}, {distinct} of them distinct within their shards",
        f"{truncated} cut to {embedder.max_tokens} tokens",
        f"{rows / seconds:,.1f} sentences/s",
        f"the device waited {100 * waited / max(running, 1e-9):.1f} % of the time",
        f"plan {embedder.plan}, {embedder.report.shapes} compiled shapes",
    ]


def _shares(
    texts: corpus.Corpus, rows: int, vectors: shards.Shards
) -> Iterator[tuple[int, list[str]]]:
    """The texts of the shards of a share, read anew and held to what was read before.

    Raises: UserError where the corpus is no longer what it was.
    """
    left = set(vectors.share)
    for number, chunk in enumerate(texts.chunks(rows)):
        if number not in left:
            continue
        if corpus.Chunk(len(chunk), corpus.digest(chunk)) != vectors.chunks[number]:
            raise UserError(f"{texts.name} has changed while it was encoded; start again")
        left.remove(number)
        yield number, chunk
    if left:
        raise UserError(f"{texts.name} has become shorter while it was encoded; start again")


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
