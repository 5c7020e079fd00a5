"""The one file that shards of vectors are joined into."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from prompteol_jax.storage import atomic, paths
from prompteol_jax.storage.arrays import DTYPES
from prompteol_jax.storage.paths import AnyPath
from prompteol_jax.storage.shards import Shards


def join_npy(shards: Shards, output: AnyPath) -> None:
    """Write all rows to one .npy file, [n, D]."""
    shape = (shards.rows, shards.width)
    header = {"descr": DTYPES[shards.dtype], "fortran_order": False, "shape": shape}

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(len(shards.chunks)):
            file.write(shards.read(number).data.cast("B"))

    _join(shards, output, write)


def join_parquet(shards: Shards, output: AnyPath) -> None:
    """Write all rows to one parquet file, column `embedding`, a fixed-size list of floats."""
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.list_(pa.from_numpy_dtype(DTYPES[shards.dtype]), shards.width)
    schema = pa.schema([pa.field("embedding", kind, nullable=False)])

    def write(file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, schema, compression="none") as writer:
            for number in range(len(shards.chunks)):
                flat = pa.array(shards.read(number).ravel())
                rows = pa.FixedSizeListArray.from_arrays(flat, type=kind)
                writer.write_table(pa.table([rows], schema=schema))

    _join(shards, output, write)


def _join(shards: Shards, output: AnyPath, write: Callable[[BinaryIO], object]) -> None:
    if paths.is_bucket(output):
        atomic.write_whole(output, write)
        return
    joined = shards.folder / "joined"
    atomic.write_whole(joined, write)
    joined.replace(output)
    atomic.sync(output.parent)
