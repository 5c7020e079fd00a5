"""Parameters of modules, and their placeholders.

Modules hold placeholders (`jax.ShapeDtypeStruct` with a sharding) when they are built and arrays
once they are filled, so the same classes describe a model and are one. They are plain pytrees:
`jax.jit`, `jax.grad` and `jax.lax.scan` apply to them directly.

Matrices are in the model's dtype, vectors (norm scales and biases) in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from prompteol_jax import axes
from prompteol_jax.ops import bits
from prompteol_jax.ops.scan import Saved
from prompteol_jax.quant import formats as quant


class Weight(nnx.Param):
    """A weight of the base model, quantized or not; its metadata `dims` names its axes."""


class Lora(nnx.Param):
    """A factor of a low-rank update; float32. In a scan over layers its value is a `Saved`."""


_Kind = TypeVar("_Kind", bound=nnx.Param)


@dataclasses.dataclass(frozen=True)
class Placeholders:
    """Makes the parameters of modules under construction.

    Attributes:
        sizes: the length of every axis letter.
        dtype: of matrices.
        layers: length of a leading axis L, for blocks that are scanned; None without one.
        quantize: kind of the matrices of linear layers; None leaves them in the model's dtype.
        fsdp: shard matrices over data too; they are gathered on use.
    """

    sizes: Mapping[str, int]
    dtype: Any
    mesh: Mesh
    layers: int | None = None
    quantize: quant.Kind | None = None
    fsdp: bool = False

    def stacked(self, layers: int) -> Placeholders:
        """Return a maker of the parameters of `layers` layers in one stack."""
        return dataclasses.replace(self, layers=layers)

    def matrix(self, dims: str) -> Weight:
        """Return a placeholder in the model's dtype."""
        lay_out = partial(axes.fsdp_sharding, over=("data",)) if self.fsdp else axes.sharding
        return self._parameter(Weight, dims, self.dtype, lay_out)

    def linear(self, dims: str, inputs: str) -> Weight:
        """Return the matrix of a linear layer; `inputs` are its contracted axes."""
        if self.quantize is None:
            return self.matrix(dims)
        value = quant.placeholder(
            self.quantize, dims, inputs, self.sizes, self.mesh, layers=self.layers, fsdp=self.fsdp
        )
        return Weight(value, dims=dims if self.layers is None else "L" + dims)

    def vector(self, dims: str) -> Weight:
        """Return a placeholder in float32, for norm scales and biases."""
        return self._parameter(Weight, dims, jnp.float32)

    def lora(self, dims: str, rank: int) -> Lora:
        """Return a placeholder of a low-rank factor, fully sharded, as its moments are."""
        ranked = dataclasses.replace(self, sizes={**self.sizes, "R": rank})
        return ranked._parameter(Lora, dims, jnp.float32, axes.fsdp_sharding)

    def _parameter(
        self, kind: type[_Kind], dims: str, dtype: Any, lay_out: Callable = axes.sharding
    ) -> _Kind:
        shape = tuple(self.sizes[letter] for letter in dims)
        if self.layers is not None:
            dims, shape = "L" + dims, (self.layers, *shape)
        sharding = lay_out(dims, shape, self.mesh)
        return kind(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding), dims=dims)


def to_scan(tree: Any) -> Any:
    """Return a tree as a scan slices it best. Low-rank factors are left alone: they get gradients.

    See `ops.bits.to_bits`.
    """
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, Lora) else bits.to_bits(leaf),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Lora),
    )


def from_scan(tree: Any) -> Any:
    """Return one layer of `to_scan`, whose leaves are `Saved`, as values.

    Low-rank factors and codes of nf4 stay `Saved`: kernels read them in their stack.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, quant.Quantized):
            return leaf.of_layer()
        return leaf if isinstance(leaf, Lora) else bits.from_bits(leaf.value)

    kept = Lora | quant.Quantized | Saved
    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, kept))
