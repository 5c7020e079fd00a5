"""The alphabet of axes, and the mesh axis of each of them.

One letter means the same everywhere: in config fields, in the names of arrays (`x_BTD`), in einsum
equations (`"BTD,NHD->BTNH"`), in annotations, in the weight tables and in the sharding table below.

    B  sentences or rows of a batch        V  vocabulary
    T  tokens in a row                     L  decoder layers
    C  cached tokens of a shared prefix    R  LoRA rank
    D  residual width                      E  OPT word-embedding width where it is not D
    N  query heads                         P  learned positions, or the longest prompt
    K  key/value heads                     S  sentences that end in a row
    H  head width                          A  alternatives scored per anchor
    F  feed-forward width                  G  query heads per key/value head
    Q  queries of one attention call       I  query heads joined, N x H; J  key/value heads, K x H

A mesh has two axes: `data` shards the batch, `model` shards heads, feed-forward width, vocabulary
and alternatives.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {"B": "data", **dict.fromkeys("NKIJFVA", "model")}
)
MESH_AXES: Final = ("data", "model")
# Replicated where their mesh axis does not divide them: a batch of one, key/value heads fewer than
# devices (`ops.attention.repeat_kv` groups them), a vocabulary of any size. For others it is a bug.
MAY_REPLICATE: Final = "BKJVA"
_LOG: Final = logging.getLogger(__name__)


def spec(dims: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Return the mesh axis of every letter of `dims`; each mesh axis is given once, from the left.

    Vectors are replicated: sharding them would save nothing.

    Raises: ValueError for a letter that its mesh axis does not divide, but for `MAY_REPLICATE`,
        which are replicated and logged.
    """
    if len(dims.lstrip("L")) == 1 and dims != "B":
        return PartitionSpec(*[None] * len(dims))
    taken: list[str | None] = []
    for letter, size in zip(dims, shape, strict=True):
        axis = RULES.get(letter)
        if axis in taken or axis is None or not _divides(letter, size, axis, mesh.shape[axis]):
            axis = None
        taken.append(axis)
    return PartitionSpec(*taken)


def _divides(letter: str, size: int, axis: str, devices: int) -> bool:
    if size % devices == 0:
        return True
    problem = f"{letter} = {size} is not a multiple of {axis} = {devices}"
    if letter not in MAY_REPLICATE:
        raise ValueError(f"{problem}; `mesh.check_mesh` refuses such a mesh")
    _log_replicated(f"{problem}: replicated")
    return False


@functools.cache
def _log_replicated(line: str) -> None:
    """Log a line once a process."""
    _LOG.info(line)


def sharding(dims: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array of these axes on the mesh."""
    return NamedSharding(mesh, spec(dims, shape, mesh))


def fsdp_sharding(
    dims: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, over: Sequence[str] = MESH_AXES
) -> NamedSharding:
    """Return the fully sharded layout of a parameter that is gathered on use.

    Each mesh axis in `over` that `spec` leaves unused shards the first dimension that it divides.
    The rank R is tried last, layers L are never sharded. On a mesh of 4 x 2:

        RD 64 x 32    ->  R replicated, D over data and model
        FR 48 x 64    ->  F over model and data, R replicated
        LRD 8 x 64 x 6 -> L replicated, R over data, D over model
    """
    sizes = dict(zip(dims, shape, strict=True))
    found = {
        letter: _names(axis) for letter, axis in zip(dims, spec(dims, shape, mesh), strict=True)
    }
    used = {axis for axes in found.values() for axis in axes}
    candidates = sorted(dims.lstrip("L"), key=lambda letter: letter == "R")

    def fits(letter: str, axis: str) -> bool:
        return sizes[letter] % math.prod(mesh.shape[a] for a in (*found[letter], axis)) == 0

    for axis in (axis for axis in over if axis not in used):
        letter = next((letter for letter in candidates if fits(letter, axis)), None)
        if letter is not None:
            found[letter] += (axis,)
    return NamedSharding(mesh, PartitionSpec(*(found[letter] or None for letter in dims)))


def _names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis
