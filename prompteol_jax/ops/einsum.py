"""Contractions of two arrays by an equation, in the form that suits the platform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from prompteol_jax import axes
from prompteol_jax.ops import platform
from prompteol_jax.ops.cpu_matmul import as_matrices, split_equation


def product(equation: str, x: jax.Array, w: jax.Array, result: Any) -> jax.Array:
    """Contract two operands of one dtype to the dtype `result`; float32 at the highest precision.

    On a CPU every product that can be one of two matrices is.
    """
    matrices = as_matrices(equation) if platform.current() == "cpu" else None
    if matrices is None:
        return _einsum(equation, x, w, result)
    x_dims, w_dims, y_dims = split_equation(equation)
    sizes = dict(zip(x_dims + w_dims, x.shape + w.shape, strict=True))
    x_shape, w_shape = matrices.shapes(sizes)
    y = _einsum(matrices.equation, x.reshape(x_shape), w.reshape(w_shape), result)
    return y.reshape([sizes[c] for c in y_dims])


def materialize_first(update: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Compute an update of `x` before what it is added to, forward and backward, on a TPU.

    XLA fuses the addition into one of the two matmuls. By default it picks the small one and spills
    the large result to HBM in float32.
    """
    if platform.current() != "tpu":
        return update(x)
    return barrier(update(_barrier_back(x)).astype(x.dtype))


@jax.custom_vjp
def barrier(x: Any) -> Any:
    """Return the arrays of x behind one optimization barrier in the forward pass only."""
    return jax.lax.optimization_barrier(x)


@jax.custom_vjp
def _barrier_back(x: jax.Array) -> jax.Array:
    return x


barrier.defvjp(lambda x: (barrier(x), None), lambda _, dy: (dy,))
_barrier_back.defvjp(lambda x: (x, None), lambda _, dy: (jax.lax.optimization_barrier(dy),))


def matrix_flops(jaxpr: Any) -> int:
    """Count FLOPs of a traced program's matrix products, 2 a multiply-add, loops by their trips."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            width = math.prod(left[axis] for axis in contracted)
            total += 2 * width * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(matrix_flops, core.jaxprs_in_params(equation.params)))
    return total


def _einsum(equation: str, x: jax.Array, w: jax.Array, result: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, w, precision=precision, preferred_element_type=result)


@lambda function: jax.custom_vjp(function, nondiff_argnums=(0, 3))
def dot(equation: str, x: jax.Array, w: jax.Array, result: Any = jnp.float32) -> jax.Array:
    """Contract two operands of one dtype, accumulating in float32.

    The gradient's products also take operands of that dtype: left to itself, differentiation would
    multiply float32 cotangents, at a fraction of the speed.

    Args:
        result: dtype of the result, and of the partial sums that devices exchange for it.
    """
    return product(equation, x, w, result)


def summed_dtype(equation: str, dtype: Any) -> Any:
    """Return the dtype of a product's result that is cast to `dtype` next.

    Where the contracted axes are sharded, partial sums are all-reduced in this dtype: bfloat16
    halves the traffic. Elsewhere, and on a CPU, it is float32.
    """
    x_dims, _, y_dims = split_equation(equation)
    mesh = jax.sharding.get_abstract_mesh()
    contracted = [axes.RULES.get(letter) for letter in x_dims if letter not in y_dims]
    shards = math.prod(mesh.shape[axis] for axis in contracted if axis and not mesh.empty)
    return jnp.float32 if shards == 1 or platform.current() == "cpu" else dtype


def _dot_forward(equation: str, x: jax.Array, w: jax.Array, result: Any) -> tuple[jax.Array, tuple]:
    return dot(equation, x, w, result), (x, w)


def _dot_backward(
    equation: str, _: Any, operands: tuple, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = operands
    x_dims, w_dims, y_dims = split_equation(equation)
    dy = dy.astype(x.dtype)
    back = f"{y_dims},{w_dims}->{x_dims}"
    dx = dot(back, dy, w, summed_dtype(back, x.dtype))
    dw = _product_over_rows(x, x_dims, dy, y_dims, w_dims)
    return dx.astype(x.dtype), dw.astype(w.dtype)


def _product_over_rows(
    x: jax.Array, x_dims: str, y: jax.Array, y_dims: str, w_dims: str
) -> jax.Array:
    """Contract `x_dims,y_dims->w_dims`, the narrower operand first where that is free.

    XLA's CPU compiler transposes the first operand of a product over rows, slowly, together with
    all that is fused into it. The barrier keeps it from swapping the two again.
    """
    if x.size > y.size:
        x, x_dims, y, y_dims = y, y_dims, x, x_dims
    outer = [c for c in x_dims if c in w_dims], [c for c in y_dims if c in w_dims]
    if set(outer[0]) & set(outer[1]):
        return dot(f"{x_dims},{y_dims}->{w_dims}", x, y)
    rows = [c for c in x_dims if c not in w_dims]
    contracted = [x_dims.index(c) for c in rows], [y_dims.index(c) for c in rows]
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    w = jax.lax.dot_general(
        x, y, (contracted, ([], [])), precision=precision, preferred_element_type=jnp.float32
    )
    dims = outer[0] + outer[1]
    if "".join(dims) == w_dims:
        return w
    return jax.lax.optimization_barrier(w).transpose([dims.index(c) for c in w_dims])


dot.defvjp(_dot_forward, _dot_backward)
