"""Exact search: the documents with the highest cosine for each query, block by block on a mesh.

The device scores a block in float32 and proposes candidates; the host scores these again, in
float64, and rounds to float32. So neither the size of the blocks, nor the mesh, nor the order of
the documents changes a result. Equal scores are ordered as `metrics` orders them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from prompteol_jax.errors import UserError

BLOCK: Final = 2**15  # documents of a block
QUERIES: Final = 1024  # queries that are scored together
MORE: Final = 32  # candidates beyond k
ROUNDING: Final = 1e-5  # the device's score of unit vectors is nearer than this to the exact one


class Block(NamedTuple):
    """Vectors of some documents, and the rank of each one's id: the greater id has the lower."""

    z_nD: Float[np.ndarray, "n D"]
    order_n: Int[np.ndarray, "n"]


class Found(NamedTuple):
    """The k best documents of each query: their id's rank, -1 where there are fewer, and scores."""

    order_qk: Int[np.ndarray, "q k"]
    score_qk: Float[np.ndarray, "q k"]


def search(
    queries_qD: Float[np.ndarray, "q D"],
    blocks: Iterable[Block],
    k: int,
    mesh: Mesh,
    *,
    block: int = BLOCK,
) -> Found:
    """Return the k documents of highest cosine for every query.

    Args:
        blocks: the documents, in any order and in parts of any size.
        block: documents that are scored together.
    Raises: UserError for vectors that are zero or not finite.
    """
    if k < 1:
        raise UserError(f"k = {k}; give the number of documents to find, 1 or more")
    tiles = [unit(z_qD, "query") for z_qD in _cut(queries_qD, QUERIES)]
    best = [Found(np.empty((len(z), 0), int), np.empty((len(z), 0), np.float32)) for z in tiles]
    for part in _equal_blocks(blocks, block):
        best = [
            _merge(found, _best_of_block(z_qD, part, k, mesh), k)
            for z_qD, found in zip(tiles, best, strict=True)
        ]
    order_qk = np.concatenate([found.order_qk for found in best])
    score_qk = np.concatenate([found.score_qk for found in best])
    pad = ((0, 0), (0, k - order_qk.shape[1]))
    return Found(
        np.pad(order_qk, pad, constant_values=-1), np.pad(score_qk, pad, constant_values=-np.inf)
    )


def _cut(z_nD: np.ndarray, size: int) -> list[np.ndarray]:
    return [z_nD[start : start + size] for start in range(0, max(1, len(z_nD)), size)]


def _best_of_block(z_qD: np.ndarray, block: Block, k: int, mesh: Mesh) -> Found:
    """Return the k best documents of one block, exactly."""
    size = min(k + MORE, len(block.z_nD))
    rows = -(-len(z_qD) // mesh.shape["data"]) * mesh.shape["data"]
    padded_qD = np.pad(z_qD, ((0, rows - len(z_qD)), (0, 0)))
    queries = jax.device_put(padded_qD, NamedSharding(mesh, PartitionSpec("data")))
    documents, real_n = (
        jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
        for x in (block.z_nD, block.order_n >= 0)
    )
    near_qc, index_qc = (np.asarray(x)[: len(z_qD)] for x in _top(queries, documents, real_n, size))
    found = _scored(z_qD, block, index_qc, k)
    if size == len(block.z_nD) or not len(z_qD):
        return found
    # Where so many documents tie that candidates may be missing, the host scores the whole block.
    unsure_q = near_qc[:, -1] > found.score_qk[:, -1] - ROUNDING
    if unsure_q.any():
        every = np.broadcast_to(np.arange(len(block.z_nD)), (unsure_q.sum(), len(block.z_nD)))
        whole = _scored(z_qD[unsure_q], block, every, k)
        found.order_qk[unsure_q], found.score_qk[unsure_q] = whole
    return found


def _scored(z_qD: np.ndarray, block: Block, index_qc: np.ndarray, k: int) -> Found:
    """Score candidates exactly and return the k best; rows that only fill the block come last."""
    order_qc = block.order_n[index_qc]
    score_qc = np.stack(
        [
            np.einsum("cD,D->c", block.z_nD[index].astype(np.float64), z_D.astype(np.float64))
            for index, z_D in zip(index_qc, z_qD, strict=True)
        ]
    ).astype(np.float32)
    score_qc[order_qc < 0] = -np.inf
    return _best(Found(order_qc, score_qc), k)


def unit(z_nD: Float[np.ndarray, "n D"], what: str) -> Float[np.ndarray, "n D"]:
    """Scale vectors to length one, in float64, and return them as float32.

    Raises: UserError naming the first vector without a direction.
    """
    length_n = np.linalg.norm(z_nD.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(np.isfinite(length_n) & (length_n > 0)))
    if len(bad):
        raise UserError(
            f"{len(bad)} {what} vectors are zero or not finite, the first is number {bad[0]}: "
            "they have no cosine"
        )
    return (z_nD / length_n[:, None]).astype(np.float32)


def _equal_blocks(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """Yield blocks of one size; rows that fill the last one have rank -1."""
    vectors: list[np.ndarray] = []
    orders: list[np.ndarray] = []

    def take(n: int) -> Block:
        z_nD, order_n = np.concatenate(vectors), np.concatenate(orders)
        vectors[:], orders[:] = [z_nD[n:]], [order_n[n:]]
        pad = size - len(order_n[:n])
        return Block(
            np.pad(z_nD[:n], ((0, pad), (0, 0))), np.pad(order_n[:n], (0, pad), constant_values=-1)
        )

    for block in blocks:
        vectors.append(unit(block.z_nD, "document"))
        orders.append(np.asarray(block.order_n))
        while sum(map(len, orders)) >= size:
            yield take(size)
    if sum(map(len, orders)):
        yield take(size)


@partial(jax.jit, static_argnums=3)
def _top(
    z_qD: jax.Array, z_nD: jax.Array, real_n: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Return the highest scores of a block and their rows."""
    score_qn = jnp.einsum("qD,nD->qn", z_qD, z_nD, precision=jax.lax.Precision.HIGHEST)
    score_qc, index_qc = jax.lax.top_k(jnp.where(real_n, score_qn, -jnp.inf), count)
    return score_qc, index_qc


def _merge(one: Found, other: Found, k: int) -> Found:
    """Return the k best of two results."""
    both = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    return _best(Found(*both), k)


def _best(found: Found, k: int) -> Found:
    """Sort by score, then by id's rank, and keep k."""
    best_qk = np.lexsort((found.order_qk, -found.score_qk), axis=1)[:, :k]
    order_qk = np.take_along_axis(found.order_qk, best_qk, axis=1)
    score_qk = np.take_along_axis(found.score_qk, best_qk, axis=1)
    return Found(np.where(np.isfinite(score_qk), order_qk, -1), score_qk)
