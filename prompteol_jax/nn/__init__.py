"""Layers: modules made of ops."""

from prompteol_jax.nn.linear import (
    LayerNorm,
    Linear,
    Lora,
    Placeholders,
    RMSNorm,
    Weight,
    from_bits,
    frozen_dot,
    lookup,
    to_bits,
    together,
)

__all__ = [
    "LayerNorm",
    "Linear",
    "Lora",
    "Placeholders",
    "RMSNorm",
    "Weight",
    "from_bits",
    "frozen_dot",
    "lookup",
    "to_bits",
    "together",
]
