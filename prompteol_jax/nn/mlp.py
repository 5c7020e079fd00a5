"""Feed-forward layers of a block, gated or plain."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from prompteol_jax.mesh import constrain
from prompteol_jax.nn.linear import Linear, fused_linears
from prompteol_jax.nn.parameters import Placeholders
from prompteol_jax.ops import dropout, einsum, scan
from prompteol_jax.ops.context import AttentionContext
from prompteol_jax.ops.scan import Saved

Activation = Callable[[jax.Array], jax.Array]


class GatedMlp(nnx.Module):
    """A gated feed-forward layer.

    y = (activation(x gate) * (x up)) down
    """

    def __init__(self, make: Placeholders, activation: Activation, *, bias: bool = False):
        self.gate = Linear("BTD,FD->BTF", make, bias=bias)
        self.up = Linear("BTD,FD->BTF", make, bias=bias)
        self.down = Linear("BTF,DF->BTD", make, bias=bias)
        self.activation = activation

    def __call__(self, y_BQD: jax.Array, context: AttentionContext) -> jax.Array:
        keys = [context.query_key(site) for site in (dropout.GATE, dropout.UP)]
        wide = fused_linears([self.gate, self.up], y_BQD, keys, context.tape)
        gate_BQF, up_BQF = (context.tape.save(constrain(x, "BQF")).value for x in wide)
        # Computed once, and not again for every block of the product.
        y_BQF = einsum.barrier(self.activation(gate_BQF) * up_BQF)
        return self.down(y_BQF, context.query_key(dropout.DOWN), context.tape)


class PlainMlp(nnx.Module):
    """A plain feed-forward layer.

    y = activation(x up) down

    Args:
        activation: by default the positive part (ReLU), of which only the result is saved.
    """

    def __init__(
        self, make: Placeholders, activation: Activation | None = None, *, bias: bool = False
    ):
        self.up = Linear("BTD,FD->BTF", make, bias=bias)
        self.down = Linear("BTF,DF->BTD", make, bias=bias)
        self.activation = activation

    def __call__(self, y_BQD: jax.Array, context: AttentionContext) -> jax.Array:
        tape = context.tape
        wide_BQF = constrain(self.up(y_BQD, context.query_key(dropout.UP), tape), "BQF")
        if self.activation is None:
            y = scan.relu(wide_BQF, tape)
        else:
            y = Saved(einsum.barrier(self.activation(tape.save(wide_BQF).value)))
        return self.down(y, context.query_key(dropout.DOWN), tape)
