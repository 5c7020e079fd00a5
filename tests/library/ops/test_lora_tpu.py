"""The kernel of a low-rank update computes what two products do, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import dropout, einsum, lora, lora_tpu
from prompteol_jax.ops.scan import NONE, Saved

SIZES = {"D": 256, "N": 2, "H": 64, "I": 128, "F": 384}
EQUATIONS = ["BTD,NHD->BTNH", "BTI,DI->BTD", "BTD,FD->BTF", "BTF,DF->BTD"]
FORMS = {
    equation: lora.LowRank(equation, a, b, outputs, rate=0.3, scale=0.25)
    for equation, a, b, outputs in zip(
        EQUATIONS,
        ("RD", "RI", "RD", "RF"),
        ("RI", "RD", "RF", "RD"),
        ((2, 64), (256,), (384,), (256,)),
        strict=True,
    )
}


def operands(equation, rank=8, rows=2, tokens=256, seed=0):
    x_dims, _, y_dims = einsum.split_equation(equation)
    shapes = [(rows, tokens, *(SIZES[c] for c in dims[2:])) for dims in (x_dims, y_dims)]
    draws = jax.random.split(jax.random.key(seed), 4)
    x, weight = (jax.random.normal(k, s) for k, s in zip(draws, shapes, strict=False))
    a = jax.random.normal(draws[2], (rank, *x.shape[2:]))
    b = jax.random.normal(draws[3], (rank, weight[0, 0].size))
    place = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
    keys = dropout.token_keys(
        jax.random.key(seed + 1), place * 0 + jnp.arange(rows)[:, None], place
    )
    return x, a, b, weight, keys


def plain(equation, x, keys, a, b, rate, scale):
    x_dims, _, _ = einsum.split_equation(equation)
    dropped = dropout.drop(x, keys, rate)
    h = jnp.einsum(f"{x_dims},R{x_dims[2:]}->BTR", dropped, a, precision="highest")
    return scale * jnp.einsum("BTR,RY->BTY", h, b, precision="highest")


def fused(cases, rate, x, keys, a, b):
    """The kernel's updates of one input, each with its factors."""
    factors = [lora.Factors(*map(Saved, pair)) for pair in zip(a, b, strict=True)]
    forms = [FORMS[case]._replace(rate=rate) for case in cases]
    ys = lora_tpu.updates(forms, Saved(x), keys, factors, interpret=True)
    return [y.reshape(*y.shape[:2], -1) for y in ys]


@pytest.mark.first("['BTF,DF->BTD']-0.0", "['BTD,NHD->BTNH', 'BTD,NHD->BTNH', 'BTD,NHD->BTNH']-0.3")
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("equations", [*([e] for e in EQUATIONS), [EQUATIONS[0]] * 3], ids=str)
def test_values_and_gradients_are_those_of_plain_products(equations, rate):
    drawn = [operands(e, seed=n) for n, e in enumerate(equations)]
    (x, *_), a, b, weights, keys = drawn[0], *zip(*(d[1:] for d in drawn), strict=True)
    keys = keys if rate else [None] * len(drawn)

    def value(update, *trained):
        ys = update(*trained)
        return sum(
            (y * weight.reshape(y.shape)).sum() for y, weight in zip(ys, weights, strict=True)
        ), ys

    def plainly(x, a, b):
        each = zip(equations, keys, a, b, strict=True)
        return [plain(e, x, k, a, b, rate, 0.25) for e, k, a, b in each]

    wanted, found = (
        jax.grad(lambda *o, f=f: value(f, *o), argnums=(0, 1, 2), has_aux=True)(x, a, b)
        for f in (plainly, lambda x, a, b: fused(equations, rate, x, keys, a, b))
    )
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(one).max()))


def test_a_mesh_changes_nothing():
    x, a, b, weight, keys = operands(EQUATIONS[1])

    @jax.jit
    def gradients(x, keys, a, b):
        def value(x, a, b):
            return (fused(EQUATIONS[1:2], 0.3, x, [keys], [a], [b])[0] * weight).sum()

        return jax.grad(value, argnums=(0, 1, 2))(x, a, b)

    alone = gradients(x, keys, a, b)
    with jax.set_mesh(make_mesh((2, 1), jax.devices()[:2])):
        spread = gradients(x, keys, a, b)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.first("['BTF,DF->BTD']", "['BTD,NHD->BTNH', 'BTD,NHD->BTNH', 'BTD,NHD->BTNH']")
@pytest.mark.parametrize("equations", [*([e] for e in EQUATIONS), [EQUATIONS[0]] * 3], ids=str)
def test_the_reference_is_the_plain_product(equations):
    drawn = [operands(e, seed=n, tokens=5) for n, e in enumerate(equations)]
    (x, *_), a, b, _, keys = drawn[0], *zip(*(d[1:] for d in drawn), strict=True)
    factors = [lora.Factors(*map(Saved, pair)) for pair in zip(a, b, strict=True)]
    ys = lora.updates([FORMS[e] for e in equations], Saved(x), keys, factors)
    for e, k, one, other, y in zip(equations, keys, a, b, ys, strict=True):
        wanted = plain(e, x, k, one, other, 0.3, 0.25).reshape(y.shape)
        np.testing.assert_allclose(y, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_why_the_reference_runs_can_be_told():
    x, a, b, _, keys = operands(EQUATIONS[0])
    factors = [lora.Factors(Saved(a), Saved(b))]

    def reason(x=x, factors=factors):
        return lora_tpu.supports([FORMS[EQUATIONS[0]]], Saved(x), [keys], factors, NONE)

    assert reason() is None
    assert reason(x[:, :24]).startswith("not supported: 24 tokens, 256 to (128,) features")
    wide = lora.Factors(Saved(jnp.zeros((8, 2**17))), Saved(b))
    assert reason(factors=[wide]).endswith("bytes of VMEM, above 67108864")
    with jax.set_mesh(make_mesh((1, 2), jax.devices()[:2])):
        assert reason() == "not supported: a model axis"
    with jax.set_mesh(make_mesh((4, 1), jax.devices()[:4])):
        assert reason() == "2 rows do not divide over 4 devices"
