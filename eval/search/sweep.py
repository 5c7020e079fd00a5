"""The sweep: cells of a grid, grouped so that what they share is encoded once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from eval.search.axes import AXES, Value
from eval.shared import bootstrap
from eval.shared.journal import Journal
from eval.sts import scores
from eval.sts.pairs import Pairs
from prompteol_jax import Embedder
from prompteol_jax.errors import NotFinite, UserError
from prompteol_jax.methods.on_model import check_depth
from prompteol_jax.methods.record import PLACEHOLDER, Collect, Method, PromptView
from prompteol_jax.methods.steps import block_range
from prompteol_jax.progress import progress_bar
from prompteol_jax.text.template import clean_sentence


@dataclass(frozen=True)
class GridCell:
    """One record of the grid.

    Attributes:
        settings: value of each axis; None where the record has no such part.
    """

    name: str
    settings: Mapping[str, Value | None]
    method: Method

    @property
    def key(self) -> str:
        """A digest of the record's content, its name left out."""
        content = {k: v for k, v in self.method.to_json().items() if k not in _ONLY_SAID}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_ONLY_SAID = ("name", "about", "paper", "published", "unverified")  # they decide no vector


def cells_of(method: Method, axes: Mapping[str, Sequence[Value]], depth: int) -> list[GridCell]:
    """Return the cells of a grid that are methods of a model of this depth.

    A copy that ends before it starts is none, nor are blocks above the layer that is read.

    Raises: UserError where no cell is left.
    """
    found = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        changed = method
        for name, value in settings.items():
            # The last layer by its number is the one that the final norm follows.
            is_last = name == "layer" and value == depth
            changed = AXES[name].set(changed, None if is_last else value)
        said = ",".join(f"{name}={value:g}" for name, value in settings.items())
        changed = dataclasses.replace(changed, name=f"{method.name}[{said}]", published=())
        if _fits(changed, depth):
            found.append(GridCell(said, settings, changed))
    if not found:
        raise UserError("--over: no combination of these values is a method")
    return found


def _fits(method: Method, depth: int) -> bool:
    if method.problems():
        return False
    try:
        check_depth(method, depth)
    except UserError:
        return False
    return True


def fixed_cells(
    method: Method, axes: Mapping[str, Sequence[Value]], depth: int
) -> tuple[GridCell, GridCell | None]:
    """Return the cells that nothing is swept for.

    Returns: the method's prompts alone, without edits and stages, at its layer or else at the last
        one; and the method as it was given, None where it is not one of a model of this depth.
    """
    bare = dataclasses.replace(
        method,
        name=f"{method.name}[none]",
        prompts=tuple(map(_without_placeholder, method.prompts)),
        copy=None,
        subtract=None,
        collect=None,
        slot=None,
        post=(),
        published=(),
    )
    if not _fits(bare, depth):
        bare = dataclasses.replace(bare, layer=None)
    none, given = (
        GridCell(name, {axis: AXES[axis].get(of) for axis in axes}, of)
        for name, of in (("none", bare), ("given", method))
    )
    return none, given if _fits(method, depth) else None


def _without_placeholder(view: PromptView) -> PromptView:
    prefix = view.template.prefix.replace(f"{PLACEHOLDER} ", "").replace(PLACEHOLDER, "")
    return dataclasses.replace(view, template=dataclasses.replace(view.template, prefix=prefix))


class Sweep:
    """Scores cells on the pairs of one task.

    Attributes:
        encodings: passes over the texts so far.
    """

    def __init__(
        self,
        embedder: Embedder,
        pairs: Pairs,
        journal: Journal,
        *,
        clean: bool = True,
        progress: bool | None = None,
    ):
        self.embedder, self.pairs, self.journal = embedder, pairs, journal
        self.progress = progress
        self.encodings = 0
        row_of: dict[str, int] = {}
        self._sides = [
            np.array([row_of.setdefault(clean_sentence(t) if clean else t, len(row_of)) for t in s])
            for s in (pairs.texts_a, pairs.texts_b)
        ]
        self.texts = list(row_of)

    def run(self, cells: Sequence[GridCell]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return the cosines of every cell, by its key; new ones are noted in the journal."""
        n = len(self.pairs)
        groups: dict[str, list[GridCell]] = {}
        for cell in cells:
            groups.setdefault(GridCell("", {}, _shared(cell.method)).key, []).append(cell)
        with progress_bar("cells", len(cells), self.progress) as advance:
            for group in groups.values():
                new = [cell for cell in group if self.journal.find(cell.key, 0, n) is None]
                if new:
                    self.journal.add(0, n, self._cosines(new))
                advance(len(group))
        found = {cell.key: self.journal.find(cell.key, 0, n) for cell in cells}
        return {key: cosines for key, cosines in found.items() if cosines is not None}

    def _cosines(self, group: Sequence[GridCell]) -> dict[str, Float64[np.ndarray, " n"]]:
        """Encode once for cells that differ in their layers and in what follows the vector."""
        self.encodings += 1
        shared = self.embedder.with_method(_shared(group[0].method))
        is_plain = all(cell.method == _shared(cell.method) for cell in group)
        if is_plain or shared.pooling != "last":  # which `encode_layers` cannot read
            states = [shared.encode(self.texts, progress=False)]
        else:
            states = shared.encode_layers(self.texts, progress=False)
        found = {}
        for cell in group:
            z_nD = read_vectors(cell.method, states)
            if cell.method.post:
                z_nD = self._post(cell.method)(z_nD)
            cosines = scores.cosine(*(z_nD[side] for side in self._sides))
            if not np.isfinite(cosines).all() or np.ptp(cosines) == 0:
                raise NotFinite(f"cell {cell.name}: its vectors have no cosines that differ")
            found[cell.key] = cosines
        return found

    def _post(self, method: Method) -> Callable[[np.ndarray], np.ndarray]:
        """Return the stages of a record after the vector."""
        post = self.embedder.with_method(dataclasses.replace(method, layer=None)).views.post
        assert post is not None  # only records with stages are asked for
        return post


def read_vectors(method: Method, states: Sequence[np.ndarray]) -> Float[np.ndarray, "n D"]:
    """Return what a record reads of all layers: one of them, or blocks' outputs together.

    Args:
        states: vectors of every layer, or those of the last one alone.
    """
    if method.collect is None or len(states) == 1:
        return states[-1 if method.layer is None else method.layer - (method.layer > 0)]
    first, end = block_range(method.collect.first, method.collect.end, len(states))
    total_nD = np.stack(states[first:end]).sum(axis=0, dtype=np.float64)
    count = end - first if method.collect.reduce == "mean" else 1
    return (total_nD / count).astype(np.float32)


def _shared(method: Method) -> Method:
    """Return what cells of one encoding have in common: all but what is taken of its layers."""
    collect = None if method.collect is None else Collect()
    return dataclasses.replace(method, layer=None, post=(), collect=collect)


def summaries(
    cells: Sequence[GridCell],
    cosines: Mapping[str, Float64[np.ndarray, " n"]],
    gold: Float64[np.ndarray, " n"],
    against: GridCell,
) -> list[dict[str, Any]]:
    """Return the score of every cell and its gain, with intervals from the same resamples.

    Args:
        against: GridCell that the gain is over; one of `cells`.
    """
    sides = [{"gold": gold, "cosine": cosines[cell.key]} for cell in cells]
    draw = np.random.default_rng(0)
    points, samples = bootstrap.spearman_samples(sides, bootstrap.RESAMPLES, draw)
    base = [cell.key for cell in cells].index(against.key)
    return [
        {
            "name": cell.name,
            "settings": dict(cell.settings),
            "score": round(points[n], 4),
            "interval": _rounded(bootstrap.percentiles(samples[n])),
            "gain": round(points[n] - points[base], 4),
            "gain_interval": _rounded(bootstrap.percentiles(samples[n] - samples[base])),
        }
        for n, cell in enumerate(cells)
    ]


def _rounded(bounds: tuple[float, float] | None) -> list[float] | None:
    return None if bounds is None else [round(bound, 2) for bound in bounds]
