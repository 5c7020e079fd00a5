"""Arrays by path in an orbax checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


def write_arrays(folder: Path, arrays: Mapping[str, jax.Array]) -> None:
    """Write arrays; `orbax.checkpoint.v1.load(folder)` gives them back by the same names."""
    ocp.save(str(folder.resolve()), dict(arrays))


def read_arrays(folder: Path, like: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Read arrays back in the shapes, dtypes and shardings of others."""
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
        for name, array in like.items()
    }
    return ocp.load(str(folder.resolve()), shapes)
