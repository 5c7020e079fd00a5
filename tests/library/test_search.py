"""Search finds the documents that a plain sort finds, for any blocks and any mesh."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax import Embedder, search
from prompteol_jax.errors import UserError
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.search import Block

N, Q, D, K = 300, 21, 16, 12


def vectors(seed, n):
    """Vectors of which many are equal, and some the same but for their length."""
    rng = np.random.default_rng(seed)
    distinct = rng.normal(size=(n // 4, D)).astype(np.float32)
    return distinct[rng.integers(0, len(distinct), n)] * rng.choice([1, 2, 0.5], (n, 1))


def plain(queries, documents, k):
    """The k best by a sort of all float64 cosines rounded to float32, ties by position."""
    q, d = (search.unit(z, "any").astype(np.float64) for z in (queries, documents))
    scores = (q @ d.T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(len(documents)), scores.shape), -scores), axis=1)
    return order[:, :k], np.take_along_axis(scores, order[:, :k], axis=1)


@pytest.mark.parametrize(
    ("mesh", "block", "parts", "k"),
    [
        ("1x1", 512, 1, K),
        ("1x1", 64, 3, K),
        ("8x1", 64, 7, K),
        ("2x4", 100, 2, K),
        ("1x1", 64, 2, N),
    ],
)
def test_blocks_parts_order_and_mesh_change_nothing(mesh, block, parts, k):
    queries, documents = vectors(0, Q), vectors(1, N)
    shuffled = np.random.default_rng(2).permutation(N)
    blocks = [Block(documents[some], some) for some in np.array_split(shuffled, parts)]
    mesh = make_mesh(parse_mesh(mesh))
    found = search.search(queries, blocks, k, mesh, block=block)
    order, score = plain(queries, documents, k)
    np.testing.assert_array_equal(found.order_qk, order)
    np.testing.assert_array_equal(found.score_qk, score)


def test_fewer_documents_than_asked_for_end_in_minus_one():
    mesh = make_mesh((1, 1))
    found = search.search(vectors(0, 8), [Block(vectors(1, 4), np.arange(4))], 6, mesh, block=8)
    assert (found.order_qk[:, :4] >= 0).all()
    assert (found.order_qk[:, 4:] == -1).all()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_is_refused_by_number(value):
    bad = vectors(1, 8)
    bad[5] = value
    with pytest.raises(UserError, match="1 document vectors are zero or not finite, the first is"):
        search.search(vectors(0, 8), [Block(bad, np.arange(8))], 2, make_mesh((1, 1)))


def test_an_embedder_finds_the_nearest_rows_for_texts_or_vectors_also_on_disk(tmp_path):
    embedder = Embedder.from_pretrained("tiny", dtype="float32", max_tokens=64)
    texts = ["A cat sleeps.", "It rains.", "A cat sleeps.", "Two men talk."]
    corpus = embedder.encode(texts)
    np.save(tmp_path / "vectors.npy", corpus)
    on_disk = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    found = embedder.search(["A cat sleeps.", "It rains."], on_disk, k=5)
    assert found.order_qk[:, 0].tolist() == [0, 1] and found.order_qk[0, 1] == 2  # the lower first
    assert found.order_qk[:, 4].tolist() == [-1, -1]
    np.testing.assert_allclose(found.score_qk[:, 0], 1, atol=1e-6)
    again = embedder.search(corpus[:2], corpus, k=5)
    np.testing.assert_array_equal(again.order_qk, found.order_qk)
    with pytest.raises(UserError, match="queries have 3 features and documents"):
        embedder.search(np.ones((1, 3), np.float32), corpus)
    with pytest.raises(UserError, match="k = 0; give the number of documents"):
        embedder.search(corpus, corpus, k=0)
