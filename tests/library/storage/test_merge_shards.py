"""One file of all shards opens in other libraries with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax import search
from prompteol_jax.mesh import make_mesh
from prompteol_jax.storage import merge_shards, shards
from prompteol_jax.storage.corpus import Chunk

ROWS, WIDTH = (5, 5, 3), 8
VECTORS = np.random.default_rng(0).normal(size=(sum(ROWS), WIDTH)).astype(np.float32)


@pytest.fixture
def joined(tmp_path):
    """Joins the shards of a run by one of the two functions."""

    def join(function, name):
        chunks = [Chunk(rows, "a") for rows in ROWS]
        with shards.opened(tmp_path / "run", {}, chunks, overwrite=False) as run:
            run.begin(WIDTH)
            for number, part in enumerate(np.split(VECTORS, np.cumsum(ROWS)[:-1])):
                run.write(number, part)
            function(run, tmp_path / name)
        return tmp_path / name

    return join


def test_faiss_finds_in_the_npy_file_what_our_search_finds(joined):
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    vectors = np.load(joined(merge_shards.join_npy, "vectors.npy"), mmap_mode="r")
    np.testing.assert_array_equal(vectors, VECTORS)
    unit = np.array(vectors)
    faiss.normalize_L2(unit)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(unit)
    score_qk, order_qk = index.search(unit[:4], 3)
    ours = search.search(vectors[:4], search.rows_in_blocks(vectors), 3, make_mesh((1, 1)))
    np.testing.assert_array_equal(ours.order_qk, order_qk)
    np.testing.assert_allclose(ours.score_qk, score_qk, atol=1e-6)


def test_a_parquet_reader_finds_a_list_of_numbers_in_every_row(joined):
    from pyarrow import parquet

    path = joined(merge_shards.join_parquet, "vectors.parquet")
    table = parquet.read_table(path)
    assert table.column_names == ["embedding"]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), VECTORS)
