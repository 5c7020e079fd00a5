"""Layouts of contractions that XLA's CPU compiler runs without transposing an operand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


def split_equation(equation: str) -> tuple[str, str, str]:
    """Split `"BTD,FD->BTF"` into the axes of input, weight and output."""
    operands, y_dims = equation.split("->")
    x_dims, w_dims = operands.split(",")
    return x_dims, w_dims, y_dims


class Matrices(NamedTuple):
    """A contraction as one product of two matrices.

    Attributes:
        equation: of the matrices, whose axes are `x` (of the first operand alone), `w` (of the
            second alone) and `s` (of both, contracted).
        x, w: axes of each operand's two matrix axes, in order.
    """

    equation: str
    x: tuple[str, str]
    w: tuple[str, str]

    def shapes(self, sizes: Mapping[str, int]) -> tuple[list[int], list[int]]:
        """Return the shapes of the two matrices."""
        x, w = (
            [math.prod(sizes[letter] for letter in dims) for dims in pair]
            for pair in (self.x, self.w)
        )
        return x, w


def as_matrices(equation: str) -> Matrices | None:
    """Return a contraction as a product of two matrices; None where it is none without a transpose.

    XLA's CPU compiler would transpose a weight of three axes before it multiplies, element by
    element, each time.
    """
    x_dims, w_dims, y_dims = split_equation(equation)
    shared = "".join(c for c in x_dims if c in w_dims)
    own_x, own_w = (dims.replace(shared, "") for dims in (x_dims, w_dims))
    if y_dims not in (own_x + own_w, own_w + own_x) or set(own_x) & set(own_w):
        return None
    names = {own_x: "x", own_w: "w", shared: "s"}

    def pair(dims: str, own: str) -> tuple[str, str]:
        return (shared, own) if dims == shared + own else (own, shared)

    x, w = pair(x_dims, own_x), pair(w_dims, own_w)
    y = "xw" if y_dims == own_x + own_w else "wx"
    operands = ",".join("".join(names[part] for part in two) for two in (x, w))
    return Matrices(f"{operands}->{y}", x, w)
