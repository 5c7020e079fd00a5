"""Log-sum-exp of the scores of a global batch, block by block: no device holds all scores."""

from __future__ import annotations

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompteol_jax.mesh import constrain
from prompteol_jax.ops.einsum import dot

BLOCK: Final = 2**24  # scores that a device holds at one time


class Anchors(NamedTuple):
    """What decides, on the side of the anchors, which alternatives an anchor leaves out.

    Attributes:
        texts_B22: two texts of each anchor's row as hashes of two words; alternatives with one of
            these texts are left out.
        limit_B: score above which an alternative is left out.
    """

    texts_B22: Int[Array, "B 2 2"] | None = None
    limit_B: Float[Array, "B"] | None = None


class Alternatives(NamedTuple):
    """The same on the side of the alternatives.

    Attributes:
        own_A: the anchor that always keeps this alternative, its positive; -1 for none.
        out_A: the anchor that always leaves this alternative out; -1 for none.
        text_A2: the alternative's text as a hash of two words.
    """

    own_A: Int[Array, "A"]
    out_A: Int[Array, "A"]
    text_A2: Int[Array, "A 2"] | None = None


Masks = tuple[Anchors, Alternatives]


@jax.custom_vjp
def log_sum_exp(
    x_BD: Float[Array, "B D"], y_AD: Float[Array, "A D"], masks: Masks | None = None
) -> tuple[Float[Array, "B"], Int[Array, "B"]]:
    """Return log-sum-exp of `x_b · y_a` over a, and the a of the highest score (the first of ties).

    Anchors stay on their devices. Alternatives come in strided blocks; each block is gathered over
    data when it is needed and sharded over model. The sum is kept relative to a running maximum.

    Args:
        masks: what leaves alternatives out; an anchor that leaves all out gets -inf. It gets no
            gradient.
    """
    (lse_B, best_B), _ = _forward(x_BD, y_AD, masks)
    return lse_B, best_B


def _forward(x_BD: jax.Array, y_AD: jax.Array, masks: Masks | None) -> tuple[tuple, tuple]:
    B, A = len(x_BD), len(y_AD)
    blocks = _blocks(B, A)

    def add(running: tuple, block: tuple) -> tuple[tuple, None]:
        max_B, sum_B, best_B = running
        y_aD, index, alternatives = block
        score_Ba = _scores(x_BD, y_aD)
        if masks is not None:
            score_Ba = jnp.where(_left_out(masks[0], alternatives, score_Ba), -jnp.inf, score_Ba)
        top_B = score_Ba.max(1)
        # Element n of block i is alternative n * blocks + i; of equal ones the first counts.
        first_B = score_Ba.argmax(1) * blocks + index
        ahead_B = (top_B > max_B) | ((top_B == max_B) & (first_B < best_B))
        higher_B = jnp.maximum(max_B, top_B)
        # All that came so far may be left out: the sum is 0 then, relative to anything finite.
        shift_B = higher_B if masks is None else jnp.where(jnp.isinf(higher_B), 0, higher_B)
        sum_B = sum_B * jnp.exp(max_B - shift_B) + jnp.exp(score_Ba - shift_B[:, None]).sum(1)
        return (higher_B, sum_B, jnp.where(ahead_B, first_B, best_B)), None

    start = (jnp.full(B, -jnp.inf), jnp.zeros(B), jnp.full(B, A, jnp.int32))
    start = tuple(constrain(a_B, "B") for a_B in start)
    xs = (_cut(y_AD, blocks), jnp.arange(blocks), _cut_masks(masks, blocks))
    (max_B, sum_B, best_B), _ = jax.lax.scan(add, start, xs)
    lse_B = max_B + jnp.log(sum_B)
    return (lse_B, best_B), (x_BD, y_AD, lse_B, masks)


def _backward(saved: tuple, cotangents: tuple) -> tuple[jax.Array, jax.Array, None]:
    x_BD, y_AD, lse_B, masks = saved
    weight_B, _ = cotangents

    def add(dx_BD: jax.Array, block: tuple) -> tuple[jax.Array, jax.Array]:
        y_aD, alternatives = block
        score_Ba = _scores(x_BD, y_aD)
        p_Ba = jnp.exp(score_Ba - lse_B[:, None]) * weight_B[:, None]
        if masks is not None:
            p_Ba = jnp.where(_left_out(masks[0], alternatives, score_Ba), 0, p_Ba)
        dx_BD = dx_BD + dot("BA,AD->BD", p_Ba, y_aD)
        # Sum over the anchors of all devices, back on the devices that hold the alternatives.
        return constrain(dx_BD, "BD"), constrain(dot("BA,BD->AD", p_Ba, x_BD), "BD")

    blocks = _blocks(len(x_BD), len(y_AD))
    xs = (_cut(y_AD, blocks), _cut_masks(masks, blocks))
    dx_BD, dy_MaD = jax.lax.scan(add, jnp.zeros_like(x_BD), xs)
    return dx_BD, jnp.swapaxes(dy_MaD, 0, 1).reshape(y_AD.shape), None


log_sum_exp.defvjp(_forward, _backward)


def _scores(x_BD: jax.Array, y_aD: jax.Array) -> jax.Array:
    y_aD = constrain(y_aD, "AD")  # the one gather of the program
    return constrain(dot("BD,AD->BA", x_BD, y_aD), "BA")


def _left_out(
    anchors: Anchors, alternatives: Alternatives, score_Ba: jax.Array
) -> Bool[Array, "B a"]:
    """Say which alternatives of a block each anchor leaves out."""
    number_B1 = jnp.arange(len(score_Ba))[:, None]
    out_Ba = jnp.zeros(score_Ba.shape, bool)
    if anchors.texts_B22 is not None and alternatives.text_A2 is not None:
        same_B2a = (anchors.texts_B22[:, :, None] == alternatives.text_A2[None, None]).all(3)
        out_Ba |= same_B2a.any(1)
    if anchors.limit_B is not None:
        out_Ba |= score_Ba > anchors.limit_B[:, None]
    out_Ba &= alternatives.own_A[None] != number_B1
    return out_Ba | (alternatives.out_A[None] == number_B1)


def _blocks(B: int, A: int) -> int:
    """Return the number of blocks of alternatives: as few as bound the scores on a device."""
    mesh = jax.sharding.get_abstract_mesh()
    data, devices = (1, 1) if mesh.empty else (mesh.shape["data"], mesh.size)
    fewest = -(-B * A // (BLOCK * devices))
    share = A // data if A % data == 0 else A
    return next(n for n in range(min(fewest, share), share + 1) if share % n == 0)


def _cut(y_AD: jax.Array, blocks: int) -> jax.Array:
    """Split into strided blocks, so that every alternative stays on its device until it is used."""
    return jnp.swapaxes(y_AD.reshape(len(y_AD) // blocks, blocks, *y_AD.shape[1:]), 0, 1)


def _cut_masks(masks: Masks | None, blocks: int) -> Alternatives | None:
    if masks is None:
        return None
    return jax.tree.map(lambda x_A: _cut(x_A, blocks), masks[1])
