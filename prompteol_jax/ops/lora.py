"""Low-rank updates of one input.

y = scale * drop(x) a b        x [tokens, inputs], a [R, inputs], b [R, outputs]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from prompteol_jax.mesh import gathered
from prompteol_jax.ops import dropout, einsum
from prompteol_jax.ops.scan import NONE, Saved, Tape


class LowRank(NamedTuple):
    """What the update of one linear layer is, its factors left out.

    Attributes:
        equation: of the layer, `"BTD,NHD->BTNH"`.
        a_dims, b_dims: axes of the factors, the rank first and heads joined: `RD`, `RI`.
        outputs: shape of a token's result, heads separate.
        rate: of dropout on the input.
        scale: factor of the update.
    """

    equation: str
    a_dims: str
    b_dims: str
    outputs: tuple[int, ...]
    rate: float
    scale: float

    @property
    def down(self) -> str:
        """Equation of the first product, `"BTD,RD->BTR"`."""
        x_dims, _, _ = einsum.split_equation(self.equation)
        return f"{x_dims},{self.a_dims}->{self._batch}R"

    @property
    def up(self) -> str:
        """Equation of the second product, `"BTR,RI->BTI"`."""
        return f"{self._batch}R,{self.b_dims}->{self._batch}{self.b_dims[1:]}"

    @property
    def _batch(self) -> str:
        x_dims, _, _ = einsum.split_equation(self.equation)
        return "".join(c for c in x_dims if c not in self.a_dims)

    def in_heads(self, y: jax.Array) -> jax.Array:
        """Return results with their heads separate."""
        return y.reshape(*y.shape[:-1], *self.outputs)


class Factors(NamedTuple):
    """The two factors of an update, `[R, inputs]` and `[R, outputs]`."""

    a: Saved
    b: Saved


Keys = dropout.Keys | None


def update(
    form: LowRank, x: jax.Array, keys: Keys, factors: Factors, tape: Tape = NONE
) -> jax.Array:
    """Return the scaled update as two products, dropout on its input where there are keys.

    The backward pass drops the input out again: saved, the dropped copies would be the largest part
    of its memory.
    """
    a, b = gathered(factors.a.value, form.a_dims), gathered(factors.b.value, form.b_dims)

    @jax.checkpoint
    def shrink(x: jax.Array, keys: Keys, a: jax.Array) -> jax.Array:
        return einsum.dot(form.down, dropout.drop(x, keys, form.rate), a)

    h = tape.save(shrink(x, keys, a.astype(x.dtype)).astype(x.dtype)).value
    return form.in_heads(einsum.dot(form.up, h, b.astype(x.dtype)) * form.scale)


def updates(
    forms: Sequence[LowRank],
    x: Saved,
    keys: Sequence[Keys],
    factors: Sequence[Factors],
    tape: Tape = NONE,
) -> list[Any]:
    """Return the updates of several layers with one input, one after another."""

    def one(form: LowRank, keys_of: Keys, ab: Factors) -> jax.Array:
        return einsum.materialize_first(
            lambda value: update(form, value, keys_of, ab, tape), x.value
        )

    return [one(*each) for each in zip(forms, keys, factors, strict=True)]
