"""What a program of `fused_update` does with its block of tokens, forward and backward.

Features are worked on in chunks, so that little is under way beside the blocks themselves. A block
whose tokens come last is a matrix of features by tokens; what the factors have in common, tokens by
rank, then has its tokens last too, which spares the kernel transpositions.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from prompteol_jax.ops import dropout
from prompteol_jax.ops.einsum import matrix_product

TOKENS: Final = 128  # of a program
CHUNK: Final = 1024  # features that a program works on at a time, at most


class Shape(NamedTuple):
    """What a kernel is compiled for; `last`: the array's tokens come last.

    Attributes:
        outputs: of every update.
        a_cut, b_cuts: the factor's gradient is sharded along data like the factor.
    """

    inputs: int
    outputs: tuple[int, ...]
    R: int
    x_last: bool
    y_last: bool
    rate: float
    scale: float
    a_cut: bool
    b_cuts: tuple[bool, ...]
    interpret: bool


class _Block:
    """The features of a block of tokens, some at a time; its token and feature axes."""

    def __init__(self, ref: Any, features: int, last: bool):
        self.ref, self.last = ref, last
        self.tokens, self.features = (1, 0) if last else (0, 1)
        size = max(n for n in range(128, CHUNK + 1, 128) if features % n == 0)
        self.chunks = [pl.ds(at, size) for at in range(0, features, size)]

    def at(self, chunk: Any) -> tuple:
        """Where a chunk's features stand in the block."""
        return (0, chunk, slice(None)) if self.last else (0, slice(None), chunk)


def _joined(h_last: bool, block: _Block, part: Any, factor: Any) -> Any:
    """What `part [tokens, features]` and `factor [R, features]` have in common, tokens by R."""
    if h_last:
        return matrix_product(factor, part, 1, block.features)
    return matrix_product(part, factor, block.features, 1)


def _spread(h_last: bool, block: _Block, h: Any, factor: Any) -> Any:
    """Features of a block from `h`, tokens by R."""
    if block.last:
        return matrix_product(factor, h, 0, 0)  # only where h has its tokens last, too
    return matrix_product(h, factor, 0 if h_last else 1, 0)


def _over_tokens(h_last: bool, block: _Block, h: Any, part: Any) -> Any:
    """`[R, features]`, summed over tokens."""
    return matrix_product(h, part, 1 if h_last else 0, block.tokens)


def _masks(shape: Shape, block: _Block, words: Any) -> Any:
    """A function from a chunk's part to the part with dropout, by the two words of the keys."""
    low, high = words[0:1], words[1:2]
    if not block.last:  # keys of tokens, now one below the other
        low, high = (jnp.broadcast_to(w, (8, TOKENS)).T[:, :1] for w in (low, high))

    def drop(part: Any, chunk: Any) -> Any:
        if shape.rate == 0.0:
            return part
        place = jax.lax.broadcasted_iota(jnp.uint32, part.shape, block.features)
        kept = dropout.is_kept(dropout.Keys(low, high), place + jnp.uint32(chunk.start), shape.rate)
        return jnp.where(kept, part * (1.0 / (1.0 - shape.rate)), 0).astype(part.dtype)

    return drop


def forward(shape: Shape, x_ref: Any, *refs: Any) -> None:
    """The updates of a block of tokens."""
    n = len(shape.outputs)
    x, last = _Block(x_ref, shape.inputs, shape.x_last), shape.x_last or shape.y_last
    a_refs, b_refs, words_ref, y_refs = refs[:n], refs[n : 2 * n], refs[2 * n], refs[2 * n + 1 :]
    for i, (a_ref, b_ref, y_ref) in enumerate(zip(a_refs, b_refs, y_refs, strict=True)):
        y = _Block(y_ref, shape.outputs[i], shape.y_last)
        drop = _masks(shape, x, words_ref[0, 2 * i : 2 * i + 2])
        h = sum(_joined(last, x, drop(x_ref[x.at(c)], c), a_ref[:, c]) for c in x.chunks)
        h = h.astype(x_ref.dtype)
        for c in y.chunks:
            y_ref[y.at(c)] = (shape.scale * _spread(last, y, h, b_ref[:, c])).astype(y_ref.dtype)


def backward(shape: Shape, x_ref: Any, *refs: Any) -> None:
    """The gradients of a block of tokens; those of the factors add up from block to block."""
    n = len(shape.outputs)
    a_refs, b_refs, dy_refs, words_ref = refs[:n], refs[n:][:n], refs[2 * n :][:n], refs[3 * n]
    dx_ref, da_refs, db_refs = refs[3 * n + 1], refs[3 * n + 2 :][:n], refs[4 * n + 2 :]

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _begin() -> None:
        for ref in (*da_refs, *db_refs):
            ref[...] = jnp.zeros_like(ref)

    x, last = _Block(x_ref, shape.inputs, shape.x_last), shape.x_last or shape.y_last
    inner = []  # of every update: its mask, and the gradient of what its factors have in common
    for i, (dy_ref, a_ref, b_ref, db_ref) in enumerate(
        zip(dy_refs, a_refs, b_refs, db_refs, strict=True)
    ):
        y = _Block(dy_ref, shape.outputs[i], shape.y_last)
        drop = _masks(shape, x, words_ref[0, 2 * i : 2 * i + 2])
        h = sum(_joined(last, x, drop(x_ref[x.at(c)], c), a_ref[:, c]) for c in x.chunks)
        dh = sum(_joined(last, y, dy_ref[y.at(c)], b_ref[:, c]) for c in y.chunks)
        h, dh = h.astype(x_ref.dtype), (shape.scale * dh).astype(x_ref.dtype)
        for c in y.chunks:
            db_ref[:, c] += shape.scale * _over_tokens(last, y, h, dy_ref[y.at(c)])
        inner.append((drop, dh))
    for c in x.chunks:
        part, dx = x_ref[x.at(c)], 0.0
        for (drop, dh), a_ref, da_ref in zip(inner, a_refs, da_refs, strict=True):
            da_ref[:, c] += _over_tokens(last, x, dh, drop(part, c))
            dx += drop(_spread(last, x, dh, a_ref[:, c]), c)
        dx_ref[x.at(c)] = dx.astype(dx_ref.dtype)


def flops(tokens: int, R: int, inputs: int, outputs: tuple[int, ...], *, backward: bool) -> int:
    """FLOPs of a call's products, of a rank of whole tiles.

    Forward: down and up; backward: both again but for the last, and a gradient of each operand.
    """
    narrow, wide = (3, 2) if backward else (1, 1)
    products = sum(narrow * inputs + wide * n for n in outputs)
    return 2 * tokens * -(-R // 128) * 128 * products
