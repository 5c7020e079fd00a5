"""`prompteol export`: a training run to files that others load, each read back and compared."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from prompteol_jax.errors import AlreadyExists, NotFound, UserError, listed
from prompteol_jax.storage import atomic, json_files, paths, same_work

if TYPE_CHECKING:
    from prompteol_jax.embedder import Embedder

# Sentences that written and read weights must encode alike.
SENTENCES: Final = ("A cat sleeps.", "The man (old) is riding a horse.", "Stocks fell 3% today", "")
# Largest difference of vectors from those of the run, over the largest number in them.
TOLERANCES: Final = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Turns a training run into files for others, reads them back and compares them with the run.

    peft: the adapter, as peft loads it. hf: adapter and base merged, a folder for transformers and,
    with the prompt in it, for sentence-transformers. orbax: the merged weights by their names here.
    With --method a model as it is becomes such a folder too.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The folder of a training run, here or in a bucket (gs://); with --method, a model's folder or
    hub name."""
    to: Literal["peft", "hf", "orbax"]
    """What to write."""
    output: Path
    """A folder that does not exist yet, or is empty."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of merged weights; an adapter is always float32."""
    method: str | None = None
    """A method without training: its prompt, pooling and stages go into a folder of --to hf."""
    other_base: bool = False
    """Use the base model as it is now, although it is not the one of the training, or unknown."""


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a training run's folder says of the model it made, or a model as it is.

    Attributes:
        work: content behind the flags, by SHA-256, as the run recorded it; None in older runs.
        method: record that it is exported with; None for the template alone.
        trained: whether there is a run.
    """

    folder: Path
    model: str
    template: str
    quantize: Any
    full: bool
    work: Mapping[str, Any] | None = None
    method: str | None = None
    trained: bool = True

    @classmethod
    def read(cls, folder: Path) -> SavedRun:
        """Read config.json of a run.

        Raises: NotFound or UserError where the folder is no run, or one without weights.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise NotFound(f"{folder} holds no config.json: it is no training run's folder")
        fields = json_files.read_object(path)
        lost = [name for name in ("model", "template", "full") if name not in fields]
        if lost:
            raise UserError(f"{path} lacks {', '.join(lost)}: it is no training run's config")
        names = ("model", "template", "quantize", "full", "work")
        values: list[Any] = [fields.get(name) for name in names]
        run = cls(folder, *values)
        weights = folder / ("model/config.json" if run.full else "adapter/adapter_config.json")
        if not weights.is_file():
            raise NotFound(
                f"{weights} does not exist: the run has kept no weights yet. It does so with its "
                "first development score, or at its end."
            )
        return run

    @classmethod
    def untrained(cls, model: str, method: str) -> SavedRun:
        """Return a model as it is, under a method."""
        return cls(Path(model), model, "", None, full=False, method=method, trained=False)

    def check_base(self) -> None:
        """Refuse a base model or a template that changed after the training.

        A run that recorded no content is refused where the base's weights are newer than its own.

        Raises: UserError that names every file that differs.
        """
        from prompteol_jax.pretrained import provenance, source
        from prompteol_jax.text.template import read_template
        from prompteol_jax.weights.folder import weight_files

        if self.full or not self.trained:  # all weights are in one folder
            return
        advice = "Put back what it was trained with, or take what is there now with --other-base"
        base = source.resolve(self.model)
        if self.work is not None:
            now = {
                "weights": provenance.model_files(base.folder) if base.folder else base.name,
                "prompt": read_template(self.template).content,
            }
            before = {name: self.work.get(name) for name in now}
            same_work.check_same(self.folder, before, now, advice=advice)
        elif base.folder is not None:
            trained = max(path.stat().st_mtime for path in (self.folder / "adapter").iterdir())
            newer = [p.name for p in weight_files(base.folder) if p.stat().st_mtime > trained]
            if newer:
                raise UserError(
                    f"{base.folder} has changed since {self.folder} was trained, which recorded no "
                    f"digest of it: {listed(newer)} is newer than the adapter. {advice}"
                )

    def load(self) -> Embedder:
        """The run's model, in float32."""
        from prompteol_jax.embedder import Embedder

        model = str(self.folder / "model") if self.full else self.model
        adapter = str(self.folder) if self.trained and not self.full else None
        how: dict[str, Any] = (
            {"method": self.method} if self.method else {"template": self.template}
        )
        return Embedder.from_pretrained(
            model, adapter, dtype="float32", quantize=self.quantize, **how
        )


def export_run(options: ExportOptions) -> None:
    """Write a run as asked for; what was written but does not hold is an error."""
    paths.refuse_buckets(options.output)
    run = read_source(options)
    if not options.other_base:
        run.check_base()
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise AlreadyExists(f"{options.output} exists and is not empty: choose another --output")
    if run.full and options.to == "peft":
        raise UserError(
            f"{run.folder} trained all weights (--full), so it has no adapter; use --to hf or orbax"
        )
    with (
        atomic.explained(options.output),
        _scratch(options.output.parent) as scratch,
    ):
        written = Path(scratch) / "done"
        written.mkdir()
        if options.to == "peft":
            said = export_peft(run, written)
        elif options.to == "hf":
            said = export_hf(run, written, options.dtype)
        else:
            said = export_orbax(run, written, options.dtype)
        if options.output.exists():
            options.output.rmdir()
        written.rename(options.output)
    sys.stdout.write(f"{options.output}: {said}\n")


def read_source(options: ExportOptions) -> SavedRun:
    """Return the run, or with --method the model, that is exported.

    Raises: UserError for a method that a static pipeline cannot hold, with every reason; otherwise
        as `SavedRun.read`.
    """
    from prompteol_jax.export import static
    from prompteol_jax.methods.library import find_method

    if options.method is None:
        return SavedRun.read(paths.local_copy(options.run, depth=2))
    if options.to != "hf":
        raise UserError(
            f"--to {options.to} writes weights without a prompt; --method needs --to hf"
        )
    static.check(find_method(options.method))
    if (options.run / "adapter").is_dir() or (options.run / "model" / "config.json").is_file():
        return dataclasses.replace(SavedRun.read(options.run), method=options.method)
    return SavedRun.untrained(str(options.run), options.method)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[str]:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=parent) as scratch:
        yield scratch


def export_peft(run: SavedRun, output: Path) -> str:
    """Copy the run's adapter."""
    import numpy as np

    from prompteol_jax.lora import peft
    from prompteol_jax.models import build
    from prompteol_jax.verify import torch_reference

    source = run.folder / "adapter"
    for name in ("adapter_config.json", *peft.ADAPTER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
    config, mesh = _shape(run)
    bare = build.abstract_decoder(config, mesh, dtype="float32")
    pair = [build.leaves(peft.load_adapter(bare, config, f, mesh)) for f in (source, output)]
    factors = [path for path in pair[0] if ".lora." in path]
    different = [p for p in factors if not np.array_equal(pair[0][p], pair[1][p])]
    if different:
        raise UserError(f"the adapter does not read back as it was written: {different}")
    said = f"adapter for {run.model}, {len(factors)} factors read back equal"
    if torch_reference.missing(output):
        return f"{said}; peft is not installed, so it did not read them"
    config, tensors = torch_reference.read_adapter(output)
    scale = config["lora_alpha"] / config["r"]
    empty = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if empty or not tensors or not scale > 0:
        raise UserError(f"peft does not read the adapter as it was written: {listed(empty)}")
    return f"{said}, {len(tensors)} read by peft"


def export_hf(run: SavedRun, output: Path, dtype: str) -> str:
    """Merge and write a folder for transformers and sentence-transformers."""
    from prompteol_jax.embedder import Embedder
    from prompteol_jax.export import static
    from prompteol_jax.export.sentence_transformers import encode_there, write_sentence_files
    from prompteol_jax.lora.lora import merge_lora
    from prompteol_jax.methods.library import FILE, plain_method, write_method
    from prompteol_jax.pretrained.load import save_pretrained

    _say(f"loading {run.folder}")
    embedder = run.load()
    method = embedder.method or plain_method(embedder.template, embedder.pooling, None)
    vectors = embedder.encode(SENTENCES, progress=False)
    _say("merging and writing")
    save_pretrained(embedder.pretrained, merge_lora(embedder.decoder), output, dtype=dtype)
    width = embedder.pretrained.config.width
    stages = static.modules(method, static.applying(embedder.views.post), width)
    write_sentence_files(output, method, stages, width=width)
    write_method(output / FILE, method)
    del embedder
    _say("reading it back")
    again = Embedder.from_pretrained(str(output), method=method, dtype="float32")
    said = f"merged model in {dtype}, {_compared(vectors, again, dtype)}"
    del again
    _say("asking sentence-transformers for its vectors")
    theirs = encode_there(output, SENTENCES)
    if theirs is None:
        return f"{said}; sentence-transformers is not installed, its prompt was rendered instead"
    return f"{said}, sentence-transformers' within {_relative(vectors, theirs, dtype):.1e}"


def export_orbax(run: SavedRun, output: Path, dtype: str) -> str:
    """Merge and write the weights as an orbax checkpoint, with config.json and the tokenizer."""
    import jax.numpy as jnp
    import numpy as np

    from prompteol_jax.lora.lora import merge_lora
    from prompteol_jax.models import build
    from prompteol_jax.pretrained.load import save_tokenizer
    from prompteol_jax.pretrained.orbax_folder import read_arrays, write_arrays

    _say(f"loading {run.folder}")
    embedder = run.load()
    vectors = embedder.encode(SENTENCES, progress=False)
    _say("merging and writing")
    merged = merge_lora(embedder.decoder)
    arrays = {path: leaf.astype(jnp.dtype(dtype)) for path, leaf in build.leaves(merged).items()}
    write_arrays(output / "weights", arrays)
    fields = {**embedder.pretrained.config.to_hf(), "dtype": dtype}
    text = json.dumps(fields, indent=2) + "\n"
    (output / "config.json").write_text(text, encoding="utf-8")
    save_tokenizer(embedder.pretrained, output)
    _say("reading it back")
    read = read_arrays(output / "weights", arrays)
    different = [path for path in arrays if not np.array_equal(read[path], arrays[path])]
    if different:
        raise UserError(f"weights do not read back as they were written: {different}")
    wide = {path: array.astype(jnp.float32) for path, array in read.items()}
    embedder.use(build.fill(merged, wide))
    return f"{len(arrays)} arrays in {dtype}, {_compared(vectors, embedder, dtype)}"


def _say(step: str) -> None:
    sys.stderr.write(f"{step} ...\n")
    sys.stderr.flush()


def _shape(run: SavedRun) -> tuple[Any, Any]:
    """The config of the run's base, and a mesh of one device."""
    from prompteol_jax.mesh import make_mesh
    from prompteol_jax.pretrained import source

    return source.resolve_config(run.model), make_mesh((1, 1))


def _compared(vectors: Any, again: Embedder, dtype: str) -> str:
    """Say how near the written weights come to the run's vectors.

    Raises: UserError where that is not near enough.
    """
    relative = _relative(vectors, again.encode(SENTENCES, progress=False), dtype)
    return f"read back: vectors within {relative:.1e} of the run's"


def _relative(vectors: Any, others: Any, dtype: str) -> float:
    import numpy as np

    relative = float(np.abs(others - vectors).max() / np.abs(vectors).max())
    if not relative <= TOLERANCES[dtype]:
        raise UserError(
            "what was written does not encode as the run does: vectors differ by "
            f"{relative:.1e} of their largest number, {TOLERANCES[dtype]:.0e} is allowed in {dtype}"
        )
    return relative
