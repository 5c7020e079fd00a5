"""Layers: modules made of ops."""

from prompteol_jax.nn.attention import Attention
from prompteol_jax.nn.embedding import Embedding, look_up
from prompteol_jax.nn.linear import Linear, frozen_dot, fused_linears
from prompteol_jax.nn.mlp import GatedMlp, PlainMlp
from prompteol_jax.nn.norms import LayerNorm, RMSNorm
from prompteol_jax.nn.parameters import Lora, Placeholders, Weight, from_scan, to_scan
from prompteol_jax.nn.residual import residual

__all__ = [
    "Attention",
    "Embedding",
    "GatedMlp",
    "LayerNorm",
    "Linear",
    "Lora",
    "Placeholders",
    "PlainMlp",
    "RMSNorm",
    "Weight",
    "from_scan",
    "frozen_dot",
    "fused_linears",
    "look_up",
    "residual",
    "to_scan",
]
