"""What the backward pass keeps of the forward pass, and what it computes again.

none  keeps whatever differentiation asks for
dots  keeps what is marked by `keep`: results of products and the moments of norms
full  keeps the input of every layer
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from prompteol_jax import axes, dropout

Remat = Literal["none", "dots", "full"]
KEPT: Final = "kept"


def keep(x: jax.Array) -> jax.Array:
    """Mark what `dots` keeps for the backward pass, where that needs it."""
    return checkpoint_name(x, KEPT)


def rematerialised(remat: Remat, layer: Callable[..., Any]) -> Callable[..., Any]:
    """A layer whose backward pass keeps only what `remat` says."""
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(KEPT) if remat == "dots" else None
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """The positive part, whose gradient needs the result alone: the argument is not kept."""
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = keep(relu(x))
    return y, y


relu.defvjp(_relu_forward, lambda y, dy: (jnp.where(y > 0, dy, 0),))


def apart(update: Callable, x: jax.Array, keys: dropout.Keys | None) -> jax.Array:
    """Compute an update of `x` before what it is added to, forward and backward, on a TPU.

    XLA adds one of two products within the other one; left to itself it writes the large one to HBM
    in float32 and adds it within the small one.
    """
    if axes.platform() != "tpu":
        return update(x, keys)
    return _settled(update(_settled_back(x), keys).astype(x.dtype))


@jax.custom_vjp
def _settled(x: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(x)


@jax.custom_vjp
def _settled_back(x: jax.Array) -> jax.Array:
    return x


_settled.defvjp(lambda x: (_settled(x), None), lambda _, dy: (dy,))
_settled_back.defvjp(lambda x: (x, None), lambda _, dy: (jax.lax.optimization_barrier(dy),))
