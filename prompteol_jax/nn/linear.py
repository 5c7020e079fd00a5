"""Linear layers that know their axes: one equation says contraction, shape, layout and LoRA update.

Products take operands of the activations' dtype and accumulate in float32. Matrices may be
quantized; they are then dequantized for one product at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prompteol_jax.mesh import constrain, gathered
from prompteol_jax.nn.parameters import Placeholders
from prompteol_jax.ops import dropout
from prompteol_jax.ops.einsum import dot, split_equation, summed_dtype
from prompteol_jax.ops.scan import NONE, Saved, Tape, as_saved
from prompteol_jax.quant import formats as quant


class Linear(nnx.Module):
    """An affine map named by its equation, `"BTD,NHD->BTNH"`, with an optional LoRA update."""

    def __init__(self, equation: str, make: Placeholders, *, bias: bool = False):
        x_dims, w_dims, y_dims = split_equation(equation)
        self.equation = equation
        self.w = make.linear(w_dims, "".join(c for c in w_dims if c in x_dims))
        self.b = make.vector("".join(c for c in y_dims if c not in x_dims)) if bias else None
        self.fsdp = make.fsdp
        self.lora: Any = nnx.data(None)  # an update of `lora`, which this module does not import

    def __call__(
        self, x: jax.Array | Saved, keys: dropout.Keys | None = None, tape: Tape = NONE
    ) -> jax.Array:
        """Apply the map in x's dtype.

        Args:
            keys: dropout keys of every token, for the update.
        """
        x = as_saved(x)
        update = None if self.lora is None else self.lora(x, keys, tape)
        return self.apply_with_update(x.value, update)

    def apply_with_update(self, x: jax.Array, update: jax.Array | None) -> jax.Array:
        """Apply the map with a given update of its result."""
        w = self.w.get_value()
        if isinstance(w, quant.Quantized):
            y = frozen_dot(self.equation, x, w, self.fsdp)
        else:
            w = w.astype(x.dtype)
            w = gathered(w, split_equation(self.equation)[1]) if self.fsdp else w
            y = dot(self.equation, x, w, summed_dtype(self.equation, x.dtype))
        if self.b is not None:
            y = y + self.b[...]
        if update is not None:
            y = y + update
        return y.astype(x.dtype)


def fused_linears(
    layers: Sequence[Linear],
    x: jax.Array | Saved,
    keys: Sequence[dropout.Keys | None],
    tape: Tape = NONE,
) -> list[jax.Array]:
    """Apply several maps to one input; their updates may share a pass over it."""
    adapted = [layer.lora for layer in layers]
    if None in adapted:
        return [layer(x, keys_of, tape) for layer, keys_of in zip(layers, keys, strict=True)]
    x = as_saved(x)
    updates = adapted[0].together(adapted, x, keys, tape)
    pairs = zip(layers, updates, strict=True)
    return [layer.apply_with_update(x.value, update) for layer, update in pairs]


@lambda function: jax.custom_vjp(function, nondiff_argnums=(0, 3))
def frozen_dot(equation: str, x: jax.Array, w: quant.Quantized, fsdp: bool = False) -> jax.Array:
    """Return `dot` with a quantized weight, which gets no gradient.

    The gradient of `x` dequantizes the weight once more: saved from the first time, the weights of
    all layers would be in memory together.

    Args:
        fsdp: whether the weight is sharded over data.
    """
    _, w_dims, _ = split_equation(equation)
    whole = w.on_use(w_dims, x.dtype, fsdp=fsdp)
    return dot(equation, x, constrain(whole, w_dims), summed_dtype(equation, x.dtype))


def _frozen_forward(
    equation: str, x: jax.Array, w: quant.Quantized, fsdp: bool
) -> tuple[jax.Array, tuple]:
    return frozen_dot(equation, x, w, fsdp), (w, jnp.empty(0, x.dtype))


def _frozen_backward(
    equation: str, fsdp: bool, residuals: tuple, dy: jax.Array
) -> tuple[jax.Array, None]:
    w, like_x = residuals
    x_dims, w_dims, y_dims = split_equation(equation)
    back = f"{y_dims},{w_dims}->{x_dims}"
    return frozen_dot(back, dy.astype(like_x.dtype), w, fsdp).astype(like_x.dtype), None


frozen_dot.defvjp(_frozen_forward, _frozen_backward)
