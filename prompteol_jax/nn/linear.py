"""Layers that know their axes: one einsum equation says contraction, shape, layout and LoRA cut.

Modules hold placeholders (`jax.ShapeDtypeStruct` with a sharding) when they are built and arrays
once they are filled, so the same classes describe a model and are one. They are plain pytrees:
`jax.jit`, `jax.grad` and `jax.lax.scan` apply to them directly.

Matrices are kept in the model's dtype, vectors (norm scales and biases) in float32. Products take
operands of the activations' dtype and accumulate in float32. The matrices of linear layers may be
quantized; they are then made whole for one product at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from prompteol_jax import axes
from prompteol_jax.mesh import constrain
from prompteol_jax.ops import dropout, norm, platform
from prompteol_jax.ops.einsum import dot, split_equation, summed_dtype
from prompteol_jax.quant import formats as quant


class Weight(nnx.Param):
    """A weight of the base model, quantized or not; its metadata `dims` names its axes."""


class Lora(nnx.Param):
    """A factor of a low-rank update; always float32."""


@dataclasses.dataclass(frozen=True)
class Placeholders:
    """Makes the parameters of modules under construction.

    Attributes:
        sizes: the length of every axis letter.
        dtype: of matrices.
        layers: length of a leading axis L, for blocks that are scanned; None without one.
        quantize: kind of the matrices of linear layers; None leaves them in the model's dtype.
    """

    sizes: Mapping[str, int]
    dtype: Any
    mesh: Mesh
    layers: int | None = None
    quantize: quant.Kind | None = None

    def stacked(self, layers: int) -> Placeholders:
        """Make parameters of `layers` layers at once."""
        return dataclasses.replace(self, layers=layers)

    def matrix(self, dims: str) -> Weight:
        """A placeholder in the model's dtype."""
        return self._parameter(Weight, dims, self.dtype)

    def linear(self, dims: str, inputs: str) -> Weight:
        """The matrix of a linear layer, `inputs` being those of its axes that are contracted."""
        if self.quantize is None:
            return self.matrix(dims)
        value = quant.placeholder(self.quantize, dims, inputs, self.sizes, self.mesh, self.layers)
        return Weight(value, dims=dims if self.layers is None else "L" + dims)

    def vector(self, dims: str) -> Weight:
        """A placeholder in float32, for norm scales and biases."""
        return self._parameter(Weight, dims, jnp.float32)

    def lora(self, dims: str, rank: int) -> Lora:
        """A float32 placeholder of a low-rank factor, spread over all devices with its moments."""
        ranked = dataclasses.replace(self, sizes={**self.sizes, "R": rank})
        return ranked._parameter(Lora, dims, jnp.float32, axes.fsdp_sharding)

    def _parameter(
        self, kind: type[nnx.Param], dims: str, dtype: Any, lay_out: Callable = axes.sharding
    ) -> nnx.Param:
        shape = tuple(self.sizes[letter] for letter in dims)
        if self.layers is not None:
            dims, shape = "L" + dims, (self.layers, *shape)
        place = lay_out(dims, shape, self.mesh)
        return kind(jax.ShapeDtypeStruct(shape, dtype, sharding=place), dims=dims)


class Linear(nnx.Module):
    """An affine map named by its equation, `"BTD,NHD->BTNH"`, with an optional LoRA update."""

    def __init__(self, equation: str, make: Placeholders, *, bias: bool = False):
        x_dims, w_dims, y_dims = split_equation(equation)
        self.equation = equation
        self.w = make.linear(w_dims, "".join(c for c in w_dims if c in x_dims))
        self.b = make.vector("".join(c for c in y_dims if c not in x_dims)) if bias else None
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array, keys: dropout.Keys | None = None) -> jax.Array:
        """Apply the map in `x.dtype`; `keys` of dropout, one a token."""
        return self.updated(x, None if self.lora is None else self.lora(x, keys))

    def updated(self, x: jax.Array, update: jax.Array | None) -> jax.Array:
        """Apply the map with a given update of its result."""
        w = self.w.get_value()
        if isinstance(w, quant.Quantized):
            y = frozen_dot(self.equation, x, w)
        else:
            y = dot(self.equation, x, w.astype(x.dtype), summed_dtype(self.equation, x.dtype))
        if self.b is not None:
            y = y + self.b[...]
        if update is not None:
            y = y + update
        return y.astype(x.dtype)


def together(
    layers: Sequence[Linear], x: jax.Array, keys: Sequence[dropout.Keys | None]
) -> list[jax.Array]:
    """Apply several maps to one input; their updates may share a pass over it."""
    adapted = [layer.lora for layer in layers]
    if None in adapted:
        return [layer(x, keys_of) for layer, keys_of in zip(layers, keys, strict=True)]
    updates = adapted[0].together(adapted, x, keys)
    return [layer.updated(x, update) for layer, update in zip(layers, updates, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def frozen_dot(equation: str, x: jax.Array, w: quant.Quantized) -> jax.Array:
    """`dot` with a quantized weight, which gets no gradient.

    The gradient of `x` makes the weight whole once more: kept from the first time, the weights of
    all layers would lie in memory together.
    """
    _, w_dims, _ = split_equation(equation)
    w = constrain(w.dequantize(x.dtype), w_dims)
    return dot(equation, x, w, summed_dtype(equation, x.dtype))


def _frozen_forward(equation: str, x: jax.Array, w: quant.Quantized) -> tuple[jax.Array, tuple]:
    return frozen_dot(equation, x, w), (w, jnp.empty(0, x.dtype))


def _frozen_backward(equation: str, kept: tuple, dy: jax.Array) -> tuple[jax.Array, None]:
    w, like_x = kept
    x_dims, w_dims, y_dims = split_equation(equation)
    dx = frozen_dot(f"{y_dims},{w_dims}->{x_dims}", dy.astype(like_x.dtype), w)
    return dx.astype(like_x.dtype), None


frozen_dot.defvjp(_frozen_forward, _frozen_backward)


class LayerNorm(nnx.Module):
    """Layer normalization with scale and bias."""

    def __init__(self, make: Placeholders, *, eps: float = 1e-5):
        self.scale = make.vector("D")
        self.bias = make.vector("D")
        self.kind = norm.Norm(eps, centered=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return norm.plain(self.kind, x, self.scale[...], self.bias[...])

    def beside(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The norm of x, and x for the residual connection."""
        return norm.beside(self.kind, x, self.scale[...], self.bias[...])


class RMSNorm(nnx.Module):
    """Root-mean-square normalization with a scale."""

    def __init__(self, make: Placeholders, *, eps: float):
        self.scale = make.vector("D")
        self.kind = norm.Norm(eps, centered=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return norm.plain(self.kind, x, self.scale[...], None)

    def beside(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The norm of x, and x for the residual connection."""
        return norm.beside(self.kind, x, self.scale[...], None)


def to_bits(tree: Any) -> Any:
    """On a CPU, turn the bfloat16 arrays of a tree into uint16 of the same bits, to slice for free.

    XLA's CPU compiler would widen the whole array to float32 before slicing or gathering. Its TPU
    compiler would copy the whole array to change its type, so elsewhere the tree stays as it is.
    """
    if platform.current() != "cpu":
        return tree
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x,
        tree,
    )


def from_bits(tree: Any) -> Any:
    """Undo `to_bits`, after the slicing."""
    return jax.tree.map(
        lambda x: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x,
        tree,
    )


def lookup(table_VD: jax.Array, index: jax.Array) -> jax.Array:
    """Take rows of a table."""
    return from_bits(to_bits(table_VD)[index])
