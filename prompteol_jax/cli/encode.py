"""`prompteol encode`: a corpus of any size to a file of vectors, resumed after a kill."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from prompteol_jax.cli.options import DistributedOptions, ModelOptions, flag
from prompteol_jax.errors import UserError
from prompteol_jax.progress import progress_bar
from prompteol_jax.scale.options import EngineOptions
from prompteol_jax.storage import corpus, merge_shards, paths, shards

if TYPE_CHECKING:
    import numpy as np

    from prompteol_jax import distributed
    from prompteol_jax.embedder import Embedder
    from prompteol_jax.encoding.report import Report

JOINS: Final = {".npy": merge_shards.join_npy, ".parquet": merge_shards.join_parquet}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions(EngineOptions, DistributedOptions, ModelOptions):
    """Encodes every text of a file to a float32 vector, in bfloat16 by default.

    Repeat a command that was interrupted and it goes on where it stopped, also on another mesh.
    Each of several processes encodes its share of the shards.
    """

    input: Path
    """.txt, one text a line (a line ends at \\n, one \\r before it is dropped); .jsonl, .csv or
    .parquet with a column `text`; a folder of such files, in the order of their names; `-` for
    lines from standard input. gs:// as well."""
    output: Path
    """.npy: an array [n, D]; .parquet: column `embedding`; or a folder: shards and manifest.json.
    gs:// as well."""
    clean: bool = False
    """Rewrite each text with the punctuation rules of the original's evaluation."""
    normalize: bool = False
    """Scale every vector to length one."""
    output_dtype: Literal["float32", "float16"] = "float32"
    """Of the numbers in the output; float16 takes half the bytes, and refuses numbers beyond
    65504."""
    overwrite: bool = False
    """Replace an output that exists, and parts of a run with other settings."""
    shard_rows: int = flag(16384, at_least=1)
    """Texts of a shard; a kill can cost two shards, and about so many are held in memory."""

    def problems(self) -> list[str]:
        """List what does not fit: processes, and an output that cannot be written or would lose
        something."""
        found = EngineOptions.problems(self) + DistributedOptions.problems(self)
        if paths.is_bucket(self.output):  # asked for when the command runs
            return found
        return found + _output_problems(self, Output.parse(self.output))

    def encode(self, embedder: Embedder, texts: Sequence[str], progress: Any = None) -> np.ndarray:
        """Return the vectors of texts, with what these flags do to texts and vectors."""
        from prompteol_jax.text.template import clean_sentence

        if self.clean:
            texts = [clean_sentence(text) for text in texts]
        return embedder.encode(texts, normalize=self.normalize, progress=progress)


def encode_corpus(options: EncodeOptions) -> None:
    """Encode a corpus; every wrong input is refused before the model is loaded."""
    output = Output.parse(options.output)
    problems = _output_problems(options, output)
    if problems:
        raise UserError("; ".join(problems))
    with corpus.opened(options.input, spool=output.spool) as texts:
        settings = _settings(options)
        chunks = texts.survey(options.shard_rows)
        closing = [f"{texts.invalid} with invalid UTF-8"] if texts.invalid else []
        part = _part(options)
        with shards.opened(
            output.parts,
            settings,
            chunks,
            overwrite=options.overwrite,
            process=part.process,
            processes=part.processes,
            computed={name: getattr(options, name) for name in ("mesh", "batch_tokens", "plan")},
        ) as vectors:
            closing += _finish(options, texts, vectors, part)
            if output.kind == "file" and part.process == 0:
                JOINS[output.path.suffix.lower()](vectors, output.path)
                vectors.remove()
        if part.process > 0:
            vectors.wait_for_first(removed=output.kind == "file")
    if part.process == 0:
        shape = f"{vectors.dtype} [{vectors.rows}, {vectors.width}]"
        sys.stderr.write(f"{output.path}: {shape}; {', '.join(closing)}\n")


@dataclasses.dataclass(frozen=True)
class Output:
    """Where vectors go.

    Attributes:
        path: file or folder, here or in a bucket.
        kind: `file`, which shards are joined into; `folder` of shards; `unknown`.
    """

    path: Any
    kind: Literal["file", "folder", "unknown"]

    @classmethod
    def parse(cls, given: Path) -> Output:
        """Find out what an output is: an existing folder, or a file by its suffix.

        Raises: NotFound, Unreachable where its bucket is not there.
        """
        path = paths.as_path(given)
        paths.check_bucket(path)
        if path.is_dir() or not path.suffix:
            return cls(path, "folder")
        return cls(path, "file" if path.suffix.lower() in JOINS else "unknown")

    @property
    def parts(self) -> Any:
        """Folder of the shards: the output itself, or a folder next to the file."""
        is_file = self.kind == "file"
        return self.path.with_name(f"{self.path.name}.parts") if is_file else self.path

    @property
    def spool(self) -> Path | None:
        """Folder for a temporary copy of standard input; None for the system's."""
        if paths.is_bucket(self.path):
            return None
        return self.path if self.path.is_dir() else self.path.parent

    def unwritable(self) -> str | None:
        """Return why nothing can be written there, as far as it can be known before."""
        if paths.is_bucket(self.path):
            return None
        folder = self.spool
        assert folder is not None  # only outputs in a bucket have none
        if not folder.is_dir():
            return f"the folder {folder} of --output does not exist; make it first"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"the folder {folder} of --output cannot be written to"
        return None


def _output_problems(options: EncodeOptions, output: Output) -> list[str]:
    path = output.path
    begun = options.overwrite or (output.parts / shards.MANIFEST).exists()
    unwritable = output.unwritable()
    conditions = (
        (unwritable is not None, unwritable),
        (
            path == corpus.STDIN,
            "--output - is no file; vectors are not written to standard output",
        ),
        (
            output.kind == "unknown",
            f"--output {path} has the unknown suffix {path.suffix!r}; give {', '.join(JOINS)}, "
            "or a folder, which has none unless it exists",
        ),
        (_same(path, paths.as_path(options.input)), f"--output {path} is the input"),
        (
            output.kind == "folder" and path.is_file(),
            f"--output {path} is a file; a name without a suffix means a folder",
        ),
        (
            output.kind == "file" and path.is_file() and not begun,
            f"--output {path} exists; --overwrite replaces it",
        ),
        (
            output.kind == "file" and options.engine == "ray",
            f"--engine ray writes a folder of shards, and --output {path} is one file",
        ),
        (
            options.coordinator is not None and options.input == corpus.STDIN,
            "--input - reaches one process only; give a file that all of them can read",
        ),
    )
    return [message for is_wrong, message in conditions if is_wrong and message]


def _same(output: Any, given: Any) -> bool:
    if paths.is_bucket(output) or paths.is_bucket(given):
        return output == given
    return output.exists() and given.exists() and output.samefile(given)


def _settings(options: EncodeOptions) -> Mapping[str, Any]:
    """Return what decides the vectors; mesh and batch tokens change their rounding only."""
    from prompteol_jax import mesh

    mesh.parse_mesh(options.mesh)
    own = {name: getattr(options, name) for name in ("clean", "normalize", "shard_rows")}
    if options.output_dtype != "float32":  # which manifests do not mention
        own["output_dtype"] = options.output_dtype
    return options.work("bfloat16") | own


def _part(options: EncodeOptions) -> distributed.Part:
    from prompteol_jax import distributed

    join = options.join if options.coordinator else None
    return distributed.work_apart(options.mesh, options.processes, join)


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
    if options.engine == "ray":
        from prompteol_jax.scale import engine

        return said + engine.encode_missing(options, vectors)
    embedder = options.load("bfloat16", part.mesh)
    vectors.begin(embedder.width)
    part.wait("the run has begun")
    try:
        said += encode_share(
            *(embedder, texts, vectors, part),
            clean=options.clean,
            normalize=options.normalize,
        )
    except KeyboardInterrupt:
        kept = f"{len(vectors.chunks) - len(vectors.missing)} of {len(vectors.chunks)} shards"
        sys.stderr.write(f"{kept} are kept in {vectors.folder}; repeat the command to go on\n")
        raise
    if part.processes > 1 and part.process == 0:
        vectors.gather()
    return said


def encode_share(
    embedder: Embedder,
    texts: corpus.Corpus,
    vectors: shards.Shards,
    part: distributed.Part,
    *,
    clean: bool = False,
    normalize: bool = False,
) -> list[str]:
    """Encode this process's share of what a run lacks; return what to say about it.

    A shard is written while the next one is encoded.

    Args:
        clean: rewrite each text with the punctuation rules of the original's evaluation.
    """
    from prompteol_jax.text.template import clean_sentence

    rows = sum(vectors.chunks[number].rows for number in vectors.share)
    reports = []
    start = time.perf_counter()
    with (
        progress_bar("encode", rows, None if part.process == 0 else False) as advance,
        _quiet(),
        ThreadPoolExecutor(1) as writer,
    ):
        writing: Future[None] | None = None
        for number in vectors.share:
            sentences = texts.read(vectors.chunks[number])
            if clean:
                sentences = [clean_sentence(text) for text in sentences]
            z_nD = embedder.encode(sentences, normalize=normalize, progress=advance)
            if writing is not None:
                writing.result()
            writing = writer.submit(vectors.write, number, z_nD, embedder.report.truncated)
            reports.append(embedder.report)
            advance(len(sentences) - embedder.report.distinct)  # copies of other texts
        if writing is not None:
            writing.result()
    seconds = time.perf_counter() - start
    by = f" by the first of {part.processes} processes" if part.processes > 1 else ""
    return [f"{rows} encoded{by}", *_counted(reports, embedder, rows / seconds)]


def _counted(reports: Sequence[Report], embedder: Embedder, rate: float) -> list[str]:
    """Say what the calls of a share did together."""
    running = sum(report.seconds for report in reports)
    waited = sum(report.waited for report in reports)
    return [
        f"{sum(report.distinct for report in reports)} of them distinct within their shards",
        f"{sum(report.truncated for report in reports)} cut to {embedder.max_tokens} tokens",
        f"{rate:,.1f} sentences/s",
        f"the device waited {100 * waited / max(running, 1e-9):.1f} % of the time",
        f"plan {embedder.plan}, {embedder.report.shapes} compiled shapes",
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
