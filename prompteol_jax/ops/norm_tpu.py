"""Norms as TPU kernels: one where they are differentiated, and one for their gradient.

XLA reads a token's features for the moments, once more for the result; the backward pass reads them
twice more, for two reductions, and once to add the residual's gradient. Here each array is read or
written once. Without differentiation the reference is as good: its moments join the product that
made x.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from prompteol_jax.mesh import axis_size, on_each_device
from prompteol_jax.ops import layer_slice
from prompteol_jax.ops.kernel import kernel_call
from prompteol_jax.ops.layer_slice import LayerSlice, unstacked
from prompteol_jax.ops.norm import Norm, moments, scaled
from prompteol_jax.ops.scan import NONE, Saved, Tape

FORWARD: Final = "norm_forward"
BACKWARD: Final = "norm_backward"
_BLOCK: Final = 2**19  # numbers of a program's block, at most


class Kind(NamedTuple):
    """What the kernels are compiled for.

    Attributes:
        differentiates: the forward kernel runs even where JAX sees no differentiation.
    """

    norm: Norm
    differentiates: bool
    interpret: bool


def supports(
    norm: Norm, x: Saved, scale: jax.Array, bias: jax.Array | None, tape: Tape
) -> str | None:
    """Return why the kernels cannot run: they take whole tiles, and as many rows a device."""
    shape, shards = x.value.shape, axis_size("data")
    if len(shape) != 3:
        return f"not supported: {len(shape)} axes"
    if shape[1] % 128 or shape[2] % 128:
        return f"not supported: {shape[1]} tokens of {shape[2]} features, no multiples of 128"
    return f"{shape[0]} rows do not divide over {shards} devices" if shape[0] % shards else None


def fork(
    norm: Norm,
    x: Saved,
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None,
    tape: Tape = NONE,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """Return the norm of x, and x for the residual connection: here their gradients meet.

    Args:
        interpret: run the kernels' programs step by step, on any device.
    """
    kind = Kind(norm, tape.differentiates, interpret)
    return _fork(kind, x.value, x.slice, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fork(
    kind: Kind, x: Any, where: LayerSlice | None, scale: Any, bias: Any
) -> tuple[jax.Array, jax.Array]:
    if kind.differentiates:
        return _fork_forward(kind, x, where, scale, bias)[0]
    return scaled(x, moments(kind.norm, x), scale, bias), x


def _fork_forward(
    kind: Kind, x: Any, where: LayerSlice | None, scale: Any, bias: Any
) -> tuple[tuple, tuple]:
    added = jnp.zeros_like(scale) if bias is None else bias
    where = where or unstacked(x)
    y = _run(kind, FORWARD, _forward, where, [], [scale, added])
    return (y, x), (where, scale, bias)


def _fork_backward(kind: Kind, operands: tuple, gradients: tuple) -> tuple:
    where, scale, bias = operands
    dy, dresidual = gradients
    dx = _run(kind, BACKWARD, _backward, where, [dy, dresidual], [scale])
    hat, _ = _normed(kind.norm, where.value().astype(jnp.float32))  # where scale and bias train
    dscale = (dy * hat).sum((0, 1))
    return dx, None, dscale, None if bias is None else dy.astype(jnp.float32).sum((0, 1))


_fork.defvjp(_fork_forward, _fork_backward)


def _run(
    kind: Kind, name: str, kernel: Any, x: LayerSlice, tokens: list, vectors: list
) -> jax.Array:
    """Run a kernel over every device's own rows."""
    call = functools.partial(_call, kind, name, kernel)
    rows, replicated = PartitionSpec("data"), PartitionSpec()
    inputs = (layer_slice.spec(rows), [rows] * len(tokens), [replicated] * len(vectors))
    run = on_each_device(call, inputs, rows)
    return run(x, tokens, [vector[None] for vector in vectors])


def _call(
    kind: Kind, name: str, kernel: Any, x: LayerSlice, tokens: list, vectors: list
) -> jax.Array:
    _, B, T, D = x.stack.shape
    tokens_each = T
    while tokens_each * D > _BLOCK and tokens_each % 16 == 0:
        tokens_each //= 2
    block = pl.BlockSpec((1, tokens_each, D), lambda b, t: (b, t, 0))
    vector = pl.BlockSpec((1, D), lambda b, t: (0, 0))
    return kernel_call(
        functools.partial(kernel, kind.norm),
        [x],
        [*tokens, *vectors],
        out_shape=jax.ShapeDtypeStruct((B, T, D), x.stack.dtype),
        grid=(B, T // tokens_each),
        in_specs=[block] * (1 + len(tokens)) + [vector] * len(vectors),
        out_specs=block,
        name=name,
        interpret=kind.interpret,
        cost_estimate=pl.CostEstimate(
            flops=10 * B * T * D,
            bytes_accessed=(len(tokens) + 2) * B * T * D * x.stack.dtype.itemsize,
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    )


def _normed(norm: Norm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x with mean 0 (where centered) and variance 1, and its factor; float32."""
    if norm.centered:
        x = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + norm.eps)
    return x * inverse, inverse


def _forward(norm: Norm, x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any) -> None:
    hat, _ = _normed(norm, x_ref[0].astype(jnp.float32))
    y_ref[0] = (hat * scale_ref[...] + bias_ref[...]).astype(y_ref.dtype)


def _backward(
    norm: Norm, x_ref: Any, dy_ref: Any, residual_ref: Any, scale_ref: Any, dx_ref: Any
) -> None:
    hat, inverse = _normed(norm, x_ref[0].astype(jnp.float32))
    dhat = dy_ref[0].astype(jnp.float32) * scale_ref[...]
    dx = dhat - hat * (dhat * hat).mean(-1, keepdims=True)
    if norm.centered:
        dx = dx - dhat.mean(-1, keepdims=True)
    dx_ref[0] = (residual_ref[0].astype(jnp.float32) + dx * inverse).astype(dx_ref.dtype)
