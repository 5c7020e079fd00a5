"""Norms of tokens; on a TPU one kernel where they are differentiated, and one for their gradient.

    y = (x - mean) / sqrt(variance + eps) * scale + bias      over D; for RMS without the mean

XLA goes over a token's features for the moments, once more for the result, and in the backward pass
again for both, for two sums, and to add the gradient that passes by. Here each array is read or
written once. Without differentiation the plain form is as good: its moments join the product that
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
from prompteol_jax.ops import layer_slice, platform, scan
from prompteol_jax.ops.layer_slice import Part, alone, kernel_call

FORWARD: Final = "norm_forward"
BACKWARD: Final = "norm_backward"
_BLOCK: Final = 2**19  # numbers of a program's block, at most


class Norm(NamedTuple):
    """A kind of norm; `centered`: the mean is taken off."""

    eps: float
    centered: bool
    interpret: bool = False


def plain(norm: Norm, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The norm of x over its last axis in its dtype, statistics in float32."""
    return _scaled(x, [scan.keep(moment) for moment in _moments(norm, x)], scale, bias)


def _moments(norm: Norm, x: jax.Array) -> list[jax.Array]:
    """What x is multiplied by, and before it, where centered, the mean that is taken off."""
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).mean(-1, keepdims=True)
    if not norm.centered:
        return [jax.lax.rsqrt(square + norm.eps)]
    mean = wide.mean(-1, keepdims=True)
    if platform.current() == "tpu":  # both moments in one pass, joined to the product that made x
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
    else:
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return [mean, jax.lax.rsqrt(variance + norm.eps)]


def _scaled(
    x: jax.Array, moments: list[jax.Array], scale: jax.Array, bias: jax.Array | None
) -> jax.Array:
    *mean, inverse = moments
    wide = x.astype(jnp.float32)
    y = (wide - mean[0] if mean else wide) * inverse * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def beside(
    norm: Norm, x: Float[Array, "B T D"], scale: Float[Array, "D"], bias: Float[Array, "D"] | None
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """The norm of x, and x for the residual connection: here their gradients meet."""
    tiles = x.ndim == 3 and x.shape[1] % 128 == x.shape[2] % 128 == len(x) % axis_size("data") == 0
    if not norm.interpret and not (tiles and platform.current() == "tpu"):
        return plain(norm, x, scale, bias), x
    return _beside(norm, scan.differentiates(), x, scan.kept_in(x), scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _beside(
    norm: Norm, fused: bool, x: Any, kept: Part | None, scale: Any, bias: Any
) -> tuple[jax.Array, jax.Array]:
    if fused:
        return _beside_forward(norm, fused, x, kept, scale, bias)[0]
    return _scaled(x, _moments(norm, x), scale, bias), x


def _beside_forward(
    norm: Norm, fused: bool, x: Any, kept: Part | None, scale: Any, bias: Any
) -> tuple[tuple, tuple]:
    added = jnp.zeros_like(scale) if bias is None else bias
    part = kept or alone(x)
    y = _run(norm, FORWARD, _forward, part, [], [scale, added])
    return (y, x), (part, scale, bias)


def _beside_backward(norm: Norm, fused: bool, operands: tuple, gradients: tuple) -> tuple:
    part, scale, bias = operands
    dy, passed = gradients
    dx = _run(norm, BACKWARD, _backward, part, [dy, passed], [scale])
    hat, _ = _normed(norm, part.value().astype(jnp.float32))  # used where scale and bias train
    dscale = (dy * hat).sum((0, 1))
    return dx, None, dscale, None if bias is None else dy.astype(jnp.float32).sum((0, 1))


_beside.defvjp(_beside_forward, _beside_backward)


def _run(norm: Norm, name: str, kernel: Any, x: Part, tokens: list, vectors: list) -> jax.Array:
    """Run a kernel over every device's own rows."""
    call = functools.partial(_call, norm, name, kernel)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    places = (layer_slice.place(rows), [rows] * len(tokens), [whole] * len(vectors))
    run = on_each_device(call, places, rows)
    return run(x, tokens, [vector[None] for vector in vectors])


def _call(norm: Norm, name: str, kernel: Any, x: Part, tokens: list, vectors: list) -> jax.Array:
    _, B, T, D = x.stack.shape
    own = T
    while own * D > _BLOCK and own % 16 == 0:
        own //= 2
    block = pl.BlockSpec((1, own, D), lambda b, t: (b, t, 0))
    vector = pl.BlockSpec((1, D), lambda b, t: (0, 0))
    return kernel_call(
        functools.partial(kernel, norm),
        [x],
        [*tokens, *vectors],
        out_shape=jax.ShapeDtypeStruct((B, T, D), x.stack.dtype),
        grid=(B, T // own),
        in_specs=[block] * (1 + len(tokens)) + [vector] * len(vectors),
        out_specs=block,
        name=name,
        interpret=norm.interpret,
        cost_estimate=pl.CostEstimate(
            flops=10 * B * T * D,
            bytes_accessed=(len(tokens) + 2) * B * T * D * x.stack.dtype.itemsize,
            transcendentals=0,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    )


def _normed(norm: Norm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x with mean 0 (where centered) and variance 1, and what it was multiplied by; float32."""
    if norm.centered:
        x = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + norm.eps)
    return x * inverse, inverse


def _forward(norm: Norm, x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any) -> None:
    hat, _ = _normed(norm, x_ref[0].astype(jnp.float32))
    y_ref[0] = (hat * scale_ref[...] + bias_ref[...]).astype(y_ref.dtype)


def _backward(
    norm: Norm, x_ref: Any, dy_ref: Any, passed_ref: Any, scale_ref: Any, dx_ref: Any
) -> None:
    hat, inverse = _normed(norm, x_ref[0].astype(jnp.float32))
    dhat = dy_ref[0].astype(jnp.float32) * scale_ref[...]
    dx = dhat - hat * (dhat * hat).mean(-1, keepdims=True)
    if norm.centered:
        dx = dx - dhat.mean(-1, keepdims=True)
    dx_ref[0] = (passed_ref[0].astype(jnp.float32) + dx * inverse).astype(dx_ref.dtype)
