"""Exact search: the documents with the highest cosine for each query, block by block on a mesh.

The device scores a block in float32 and proposes candidates; the host scores these again, in
float64, and rounds to float32. So neither the size of the blocks, nor the mesh, nor the order of
the documents changes a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from prompteol_jax.errors import UserError

BLOCK: Final = 2**15  # documents of a block
QUERIES: Final = 1024  # queries that are scored together
MORE: Final = 32  # candidates beyond k
ROUNDING: Final = 1e-5  # the device's score of unit vectors is nearer than this to the exact one
_SLICE: Final = 2**11  # vectors that are held in float64 at a time


class Block(NamedTuple):
    """Vectors of some documents, and the rank of each one among equal scores: the lowest first."""

    z_nD: Float[np.ndarray, "n D"]
    order_n: Int[np.ndarray, "n"]


class Found(NamedTuple):
    """The k best documents of each query, the best first.

    Attributes:
        order_qk: their ranks as `Block` has them; -1 where there are fewer than k.
        score_qk: their cosines; -inf where there are fewer than k.
    """

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
    Raises: UserError for vectors that are zero or not finite, or of another width.
    """
    if k < 1:
        raise UserError(f"k = {k}; give the number of documents to find, 1 or more")
    tiles = [unit(z_qD, "query") for z_qD in _cut(queries_qD, QUERIES)]
    best = [Found(np.empty((len(z), 0), int), np.empty((len(z), 0), np.float32)) for z in tiles]
    for part in _equal_blocks(blocks, block):
        _check_width(queries_qD, part.z_nD)
        on_mesh = _to_mesh(part, mesh)
        best = [
            _merge(
                found, _best_of_block(z_qD, part, _proposed(z_qD, on_mesh, k, mesh), k, found), k
            )
            for z_qD, found in zip(tiles, best, strict=True)
        ]
    order_qk = np.concatenate([found.order_qk for found in best])
    score_qk = np.concatenate([found.score_qk for found in best])
    pad = ((0, 0), (0, k - order_qk.shape[1]))
    return Found(
        np.pad(order_qk, pad, constant_values=-1), np.pad(score_qk, pad, constant_values=-np.inf)
    )


def rows_in_blocks(z_nD: Float[np.ndarray, "n D"], size: int = BLOCK) -> Iterator[Block]:
    """Yield the rows of an array, which may be on disk, ranked by their numbers."""
    for start in range(0, len(z_nD), size):
        part = np.asarray(z_nD[start : start + size])
        yield Block(part, np.arange(start, start + len(part)))


def unit(z_nD: Float[np.ndarray, "n D"], what: str) -> Float[np.ndarray, "n D"]:
    """Scale vectors to length one, in float64, and return them as float32.

    Raises: UserError naming the first vector without a direction.
    """
    scaled_nD = np.empty(z_nD.shape, np.float32)
    length_n = np.empty(len(z_nD))
    for start in range(0, len(z_nD), _SLICE):
        part = slice(start, start + _SLICE)
        wide = z_nD[part].astype(np.float64)
        length_n[part] = np.linalg.norm(wide, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled_nD[part] = wide / length_n[part, None]
    bad = np.flatnonzero(~(np.isfinite(length_n) & (length_n > 0)))
    if len(bad):
        raise UserError(
            f"{len(bad)} {what} vectors are zero or not finite, the first is number {bad[0]}: "
            "they have no cosine"
        )
    return scaled_nD


def _check_width(queries_qD: np.ndarray, z_nD: np.ndarray) -> None:
    if queries_qD.shape[1] != z_nD.shape[1]:
        raise UserError(
            f"queries have {queries_qD.shape[1]} features and documents {z_nD.shape[1]}; encode "
            "both with the same model, layer and pooling"
        )


def _cut(z_nD: np.ndarray, size: int) -> list[np.ndarray]:
    return [z_nD[start : start + size] for start in range(0, max(1, len(z_nD)), size)]


def _to_mesh(block: Block, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Put the vectors on every device, and which of them are real."""
    layout = NamedSharding(mesh, PartitionSpec())
    real_n = block.order_n >= 0
    return jax.device_put(block.z_nD, layout), jax.device_put(real_n, layout)


def _floor(found: Found, k: int) -> Float[np.ndarray, "q"]:
    """Return the lowest score that still counts for each query."""
    full = found.score_qk.shape[1] == k
    return found.score_qk[:, -1] if full else np.full(len(found.score_qk), -np.inf, np.float32)


def _best_of_block(
    z_qD: np.ndarray, block: Block, proposed: tuple[np.ndarray, np.ndarray], k: int, before: Found
) -> Found:
    """Return the k best documents of one block, exactly, but for those that cannot count.

    Args:
        before: the best documents of the blocks before.
    """
    (near_qc, index_qc), floor_q = proposed, _floor(before, k)
    found = _scored(z_qD, block, index_qc, near_qc >= floor_q[:, None] - ROUNDING, k)
    if near_qc.shape[1] == len(block.z_nD) or not len(z_qD):
        return found
    # Where so many documents tie that candidates may be missing, the host scores the whole block.
    least_q = np.maximum(found.score_qk[:, -1], floor_q)
    unsure_q = np.flatnonzero(near_qc[:, -1] > least_q - ROUNDING)
    everything = np.arange(len(block.z_nD))[None]
    for query in unsure_q:
        some = z_qD[query : query + 1]
        whole = _scored(some, block, everything, np.ones_like(everything, bool), k)
        found.order_qk[query], found.score_qk[query] = whole.order_qk[0], whole.score_qk[0]
    return found


def _proposed(
    z_qD: np.ndarray, on_mesh: tuple[jax.Array, jax.Array], k: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Return the device's highest scores of a block, a few more than k, and their rows."""
    size = min(k + MORE, len(on_mesh[0]))
    rows = -(-len(z_qD) // mesh.shape["data"]) * mesh.shape["data"]
    padded_qD = np.pad(z_qD, ((0, rows - len(z_qD)), (0, 0)))
    queries = jax.device_put(padded_qD, NamedSharding(mesh, PartitionSpec("data")))
    near_qc, index_qc = _top(queries, *on_mesh, size)
    return np.asarray(near_qc)[: len(z_qD)], np.asarray(index_qc)[: len(z_qD)]


def _scored(
    z_qD: np.ndarray,
    block: Block,
    index_qc: Int[np.ndarray, "q c"],
    counts_qc: Bool[np.ndarray, "q c"],
    k: int,
) -> Found:
    """Score candidates that count exactly and return the k best; others come last."""
    order_qc = block.order_n[index_qc]
    score_qc = np.full(index_qc.shape, -np.inf, np.float32)
    counts_qc = counts_qc & (order_qc >= 0)
    for query in np.flatnonzero(counts_qc.any(axis=1)):
        counts = counts_qc[query]
        z_cD = block.z_nD[index_qc[query, counts]].astype(np.float64)
        score_qc[query, counts] = np.einsum("cD,D->c", z_cD, z_qD[query].astype(np.float64))
    return _best(Found(order_qc, score_qc), k)


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
    """Sort by score, then by rank, and keep k."""
    best_qk = np.lexsort((found.order_qk, -found.score_qk), axis=1)[:, :k]
    order_qk = np.take_along_axis(found.order_qk, best_qk, axis=1)
    score_qk = np.take_along_axis(found.score_qk, best_qk, axis=1)
    return Found(np.where(np.isfinite(score_qk), order_qk, -1), score_qk)
