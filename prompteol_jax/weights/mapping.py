"""The weight table of a model family: which tensor of a file becomes which leaf, and how.

One row names a tensor, a leaf, and how the axes go from one to the other:

    TensorMap("layers.{l}.self_attn.q_proj.weight", "block.attention.q.w", "(N H) D -> D N H")

Layers 0 to L-2 of a `block.` leaf are stacked at `blocks.`; layer L-1 is at `last.`.

Where the file has several leaves in one tensor, one after another along an axis, bars separate them
and parentheses mark the row's own one:

    TensorMap("layers.{l}.self_attn.qkv_proj.weight", "block.attention.k.w", "I|(K H)|J D -> K H D")
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from prompteol_jax.errors import UserError


class TensorMap(NamedTuple):
    """One row of a family's weight table."""

    source: str  # name in the file, "{l}" for the layer number
    target: str  # path of the leaf, "block." for one leaf per layer
    dims: str  # axes in the file -> axes of the leaf; joined axes in parentheses, row-major


class Sources(NamedTuple):
    """The tensors of a file that make up one leaf, in the order they are stacked."""

    names: tuple[str, ...]
    stacked: bool
    dims: str


def expand(table: Sequence[TensorMap], L: int) -> dict[str, Sources]:
    """Return the sources of every leaf; with one layer, `blocks.` has none."""
    leaves: dict[str, Sources] = {}
    for source, target, dims in table:
        if not target.startswith("block."):
            leaves[target] = Sources((source,), False, dims)
            continue
        names = tuple(source.replace("{l}", str(layer)) for layer in range(L))
        leaf = target.removeprefix("block.")
        leaves[f"blocks.{leaf}"] = Sources(names[:-1], True, dims)
        leaves[f"last.{leaf}"] = Sources(names[-1:], False, dims)
    return leaves


def arrange(
    array: Shaped[np.ndarray, "..."], dims: str, sizes: Mapping[str, int]
) -> Shaped[np.ndarray, "..."]:
    """Split, reorder and join axes as `dims` says, without a copy wherever strides allow it.

    Of a fused tensor its own part is taken.
    """
    source, target = parse(dims)
    axes = [axis for group in source for axis in group]
    split = array[(*own_part(dims, sizes), ...)].reshape([sizes[axis] for axis in axes])
    order = [axes.index(axis) for group in target for axis in group]
    return split.transpose(order).reshape(lengths(target, sizes))


def reverse(dims: str) -> str:
    """Return the pattern of the opposite direction, from a leaf to its own part of a tensor."""
    source, target = dims.split("->")
    own = " ".join(own_axis(axis) for axis in axes_of(source))
    return f"{target.strip()} -> {own}"


Axes = tuple[tuple[str, ...], ...]


def axes_of(side: str) -> list[str]:
    """Return the axes of one side of a pattern, as `["I|(K H)|J", "D"]`."""
    return re.findall(r"(?:\([^()]*\)|[^\s()])+", side)


def own_axis(axis: str) -> str:
    """Return the row's own part of an axis."""
    parts = axis.split("|")
    return parts[_own(parts)]


def _own(parts: Sequence[str]) -> int:
    return next((n for n, part in enumerate(parts) if part.startswith("(")), 0)


@functools.cache
def parse(dims: str) -> tuple[Axes, Axes]:
    """Return the axes of file and leaf, each a group of letters joined in one axis.

    Of fused axes only the row's own part is returned.

    Raises: UserError where the two sides differ in their letters, or a letter occurs twice.
    """
    sides = [[own_axis(axis) for axis in axes_of(side)] for side in dims.split("->")]
    groups = [tuple(tuple(axis.strip("()").split()) for axis in side) for side in sides]
    letters = [sorted(axis for group in side for axis in group) for side in groups]
    if len(groups) != 2 or letters[0] != letters[1] or len(set(letters[0])) < len(letters[0]):
        raise UserError(f"{dims!r} does not name the same axes once on each side of '->'.")
    return groups[0], groups[1]


def lengths(side: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of one side of a pattern."""
    return tuple(math.prod(sizes[axis] for axis in group) for group in side)


def file_shape(dims: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape of the tensor in the file, other leaves in it included."""
    return tuple(sum(parts) for parts, _ in _fused(dims, sizes))


def own_part(dims: str, sizes: Mapping[str, int]) -> tuple[slice, ...]:
    """Return where the row's own part is in the tensor."""
    each = _fused(dims, sizes)
    starts = [sum(parts[:own]) for parts, own in each]
    return tuple(slice(at, at + parts[own]) for at, (parts, own) in zip(starts, each, strict=True))


def parts_of(dims: str) -> int:
    """Return how many leaves the tensor holds along its first axis."""
    return len(axes_of(dims.split("->", maxsplit=1)[0])[0].split("|"))


def _fused(dims: str, sizes: Mapping[str, int]) -> list[tuple[list[int], int]]:
    """Return the lengths of the parts of every axis of the file, and which part is the own one."""
    found = []
    for axis in axes_of(dims.split("->", maxsplit=1)[0]):
        parts = axis.split("|")
        letters = [part.strip("()").split() for part in parts]
        widths = [math.prod(sizes[letter] for letter in part) for part in letters]
        found.append((widths, _own(parts)))
    return found
