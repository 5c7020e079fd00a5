"""`prompteol methods` and `prompteol fit`: the shipped methods, and numbers fitted for one."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import AlreadyExists, UserError
from prompteol_jax.storage import corpus, json_files, paths

if TYPE_CHECKING:
    import numpy as np

    from prompteol_jax.embedder import Embedder
    from prompteol_jax.methods.record import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Lists the methods that --method takes by name: cost, needs, what is given up, scores."""

    beginning: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BEGINNING")] = ""
    """Of the names to list, such as `tp`; all by default."""
    json: Path | None = None
    """File for the list with every record."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions(ModelOptions):
    """Fits the stages of a method that need it (mean removal, whitening) on the texts of a file.

    Writes a folder that --method takes: the record and its numbers.
    """

    input: Path
    """Texts to fit on, in the forms of `prompteol encode`."""
    output: Path
    """Folder to write; it must not exist."""

    def problems(self) -> list[str]:
        """List what does not fit: there must be a method, and a new folder."""
        found = [] if self.method else ["give --method, whose stages are fitted"]
        taken = [f"--output {self.output} exists"] if self.output.exists() else []
        return found + taken


def list_methods(options: MethodsOptions) -> None:
    """Print a table of the shipped methods."""
    from rich import console, table, text

    from prompteol_jax.methods.cost import LAYERS, TEXT
    from prompteol_jax.methods.library import find_method, shipped

    names = [name for name in shipped() if name.startswith(options.beginning)]
    if not names:
        raise UserError(f"no method begins with {options.beginning!r}; leave it out to see all")
    rows = [_row(find_method(name)) for name in names]
    grid = table.Table(
        title=f"cost: FLOPs against eol, {LAYERS} layers, {TEXT} tokens a text, estimated",
        title_justify="left",
    )
    for column in ("method", "cost", "needs", "gives up", "paper", "published STS"):
        grid.add_column(column)
    for row in rows:
        scores = [f"{s['sts']:.2f} {s['model'].split('/')[-1]}" for s in row["published"]]
        paper = row["paper"] or ""
        lists = ("; ".join(row[name]) for name in ("needs", "gives_up"))
        cells = (row["name"], f"{row['cost']:.2f}", *lists, paper)
        grid.add_row(*map(text.Text, (*cells, "\n".join(scores))))
    console.Console().print(grid)
    if options.json:
        json_files.write_object(paths.as_path(options.json), {"methods": rows})


def _row(method: Method) -> dict[str, Any]:
    from prompteol_jax.methods import cost

    record = method.to_json()
    published = [score for score in record.get("published", []) if "sts" in score]
    return {
        "name": method.name,
        "cost": cost.cost(method),
        "needs": cost.needs(method),
        "gives_up": cost.gives_up(method),
        "paper": method.paper,
        "published": published,
        "record": record,
    }


def fit(options: FitOptions) -> None:
    """Encode the texts without post stages, fit each stage in turn, and write the folder."""
    from prompteol_jax.methods import library
    from prompteol_jax.methods.record import FITTED

    assert options.method is not None  # `problems` asks for it
    method = library.find_method(options.method)
    if not any(stage.kind in FITTED for stage in method.post):
        raise UserError(f"the method {method.name} has no stage to fit: {', '.join(FITTED)}")
    with corpus.opened(options.input, spool=None) as texts:
        lines = [line for chunk in texts.chunks(16384) for line in chunk]
    if not lines:
        raise UserError(f"{options.input} has no text to fit on")
    bare = dataclasses.replace(method, post=())
    embedder = options.load("float32", method=bare)
    raw_nD = embedder.encode(lines)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent) as scratch:
        folder = Path(scratch) / options.output.name  # whole or not at all: fitting can fail
        folder.mkdir()
        _write_fitted(embedder, method, raw_nD, folder)
        if options.output.exists():
            raise AlreadyExists(f"--output {options.output} exists; give a new folder")
        folder.rename(options.output)
    sys.stderr.write(f"{options.output}: fitted on {len(lines)} texts; --method {options.output}\n")


def _write_fitted(embedder: Embedder, method: Method, raw_nD: np.ndarray, folder: Path) -> None:
    """Fit each stage on the vectors after the stages before it; write the numbers and the record.

    Args:
        raw_nD: vectors of the texts before all stages.
    """
    from prompteol_jax.methods import library, post
    from prompteol_jax.methods.record import FITTED

    z_nD, stages = raw_nD, []
    for number, stage in enumerate(method.post, 1):
        if stage.kind in FITTED:
            stage = dataclasses.replace(stage, file=f"{number}-{stage.kind}.npz")
            post.save(folder / str(stage.file), post.fit(stage, z_nD))
        stages.append(stage)
        fitted = dataclasses.replace(method, post=tuple(stages), folder=folder)
        after = embedder.with_method(fitted).views.post
        assert after is not None  # there is one stage or more
        z_nD = after(raw_nD)
    library.write_method(folder / library.FILE, dataclasses.replace(method, post=tuple(stages)))
