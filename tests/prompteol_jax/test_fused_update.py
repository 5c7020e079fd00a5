"""The kernel of a low-rank update computes what two products do, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import axes, dropout, fused_update, nn

SIZES = {"D": 256, "N": 2, "H": 64, "F": 384}
EQUATIONS = ["BTD,NHD->BTNH", "BTNH,DNH->BTD", "BTD,FD->BTF", "BTF,DF->BTD"]


def operands(equation, rank=8, rows=2, tokens=256):
    x_dims, _, y_dims = nn.split_equation(equation)
    shapes = [(rows, tokens, *(SIZES[c] for c in dims[2:])) for dims in (x_dims, y_dims)]
    draws = jax.random.split(jax.random.key(0), 4)
    x, weight = (jax.random.normal(k, s) for k, s in zip(draws, shapes, strict=False))
    a = jax.random.normal(draws[2], (rank, *x.shape[2:]))
    b = jax.random.normal(draws[3], (*weight.shape[2:], rank))
    place = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
    keys = dropout.token_keys(jax.random.key(1), place * 0 + jnp.arange(rows)[:, None], place)
    return x, a, b, weight, keys


def plain(equation, x, keys, a, b, rate, scale):
    x_dims, _, y_dims = nn.split_equation(equation)
    dropped = dropout.drop(x, keys, rate)
    h = jnp.einsum(f"{x_dims},R{x_dims[2:]}->BTR", dropped, a, precision="highest")
    return scale * jnp.einsum(f"BTR,{y_dims[2:]}R->{y_dims}", h, b, precision="highest")


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients_are_those_of_plain_products(equation, rate):
    x, a, b, weight, keys = operands(equation)
    keys = keys if rate else None

    def value(update, *trained):
        y = update(*trained)
        return (y * weight).sum(), y

    def plainly(x, a, b):
        return plain(equation, x, keys, a, b, rate, 0.25)

    def fused(x, a, b):
        return fused_update.update(x, keys, a, b, rate=rate, scale=0.25, interpret=True)

    wanted, found = (
        jax.value_and_grad(lambda *o, f=f: value(f, *o), argnums=(0, 1, 2), has_aux=True)(x, a, b)
        for f in (plainly, fused)
    )
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(one).max()))


def test_a_mesh_changes_nothing():
    x, a, b, weight, keys = operands(EQUATIONS[1])

    @jax.jit
    def gradients(x, keys, a, b):
        def value(x, a, b):
            y = fused_update.update(x, keys, a, b, rate=0.3, scale=0.25, interpret=True)
            return (y * weight).sum()

        return jax.grad(value, argnums=(0, 1, 2))(x, a, b)

    alone = gradients(x, keys, a, b)
    with jax.set_mesh(axes.make_mesh((2, 1), jax.devices()[:2])):
        spread = gradients(x, keys, a, b)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
