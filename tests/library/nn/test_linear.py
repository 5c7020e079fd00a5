"""Laws of the layers: defined numerics, dropout that knows rows, equations that say everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import nn
from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import einsum
from prompteol_jax.ops.einsum import dot

EQUATIONS = {
    "BTD,NHD->BTNH": ((3, 5, 16), (4, 6, 16)),
    "BTNH,DNH->BTD": ((3, 5, 4, 6), (16, 4, 6)),
    "BTD,FD->BTF": ((3, 5, 16), (20, 16)),
    "BQKGH,BTKH->BKGQT": ((3, 2, 2, 2, 6), (3, 5, 2, 6)),
    "BKGQC,CKH->BQKGH": ((3, 2, 2, 1, 7), (7, 2, 6)),
}


def operands(equation, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = (
        jax.random.normal(k, s).astype(dtype)
        for k, s in zip(keys, EQUATIONS[equation], strict=False)
    )
    dy = jax.random.normal(keys[2], jax.eval_shape(lambda: dot(equation, x, w)).shape)
    return x, w, dy


def exact(equation, x, w, dy):
    """The product and its two gradients in float64."""
    x_dims, w_dims, y_dims = einsum.split_equation(equation)
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    dx = np.einsum(f"{y_dims},{w_dims}->{x_dims}", dy, w)
    dw = np.einsum(f"{x_dims},{y_dims}->{w_dims}", x, dy)
    return np.einsum(equation, x, w), dx, dw


@pytest.mark.first("BTD,NHD->BTNH-float32-2e-06", "BQKGH,BTKH->BKGQT-bfloat16-0.008")
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_and_its_gradient_are_those_of_float64_to_the_operands_rounding(
    equation, dtype, rtol
):
    x, w, dy = operands(equation, dtype)
    y, pull = jax.vjp(lambda x, w: dot(equation, x, w), x, w)
    dx, dw = pull(dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.float32, x.dtype, w.dtype)
    for ours, theirs in zip((y, dx, dw), exact(equation, x, w, dy), strict=True):
        difference = np.abs(np.asarray(ours, np.float64) - theirs).max()
        assert difference <= rtol * np.abs(theirs).max()


def test_a_bfloat16_product_accumulates_in_float32():
    x = jnp.ones((1, 4096), jnp.bfloat16)
    w = jnp.full((1, 4096), 1.0078125, jnp.bfloat16)
    assert dot("BD,VD->BV", x, w)[0, 0] == 4128.0  # bfloat16 has no number between 4128 +- 16


def test_gradients_multiply_no_float32_where_operands_are_bfloat16():
    x, w, dy = operands("BTD,FD->BTF", jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda x, w: jax.vjp(lambda *a: dot("BTD,FD->BTF", *a), x, w)[1](dy))(
        x, w
    )
    types = [[v.aval.dtype for v in e.invars] for e in products(jaxpr.jaxpr)]
    assert types == [[jnp.bfloat16] * 2] * 3


@pytest.mark.parametrize("equation", ["BTD,NHD->BTNH", "BTNH,DNH->BTD", "BTD,FD->BTF"])
def test_on_a_cpu_a_weight_is_a_matrix_in_every_product_that_reads_it(equation):
    # One of three axes would be transposed, element by element, for every product.
    x, w, dy = operands(equation, jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x, w: jax.vjp(lambda *a: dot(equation, *a), x, w)[1](dy))(x, w)
    forward, back, _ = products(jaxpr.jaxpr)
    assert [v.aval.ndim for e in (forward, back) for v in (*e.invars, *e.outvars)] == [2] * 6


def products(jaxpr):
    """Every matrix product of a program, inside its calls as well."""
    for e in jaxpr.eqns:
        if e.primitive.name == "dot_general":
            yield e
        for inner in jax.tree.leaves(
            list(e.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from products(getattr(inner, "jaxpr", inner))


def placeholders(dtype=jnp.float32, **sizes):
    return nn.Placeholders(dict(D=16, N=4, H=6, F=20) | sizes, dtype, make_mesh((1, 1)))


def filled(module):
    """Put distinct numbers in the place of a module's placeholders."""
    for seed, (_, variable) in enumerate(sorted(vars(module).items())):
        if isinstance(variable, nn.Weight):
            leaf = variable.get_value()
            numbers = np.random.default_rng(seed).normal(size=leaf.shape)
            variable.set_value(jnp.asarray(numbers, leaf.dtype))
    return module


@pytest.mark.parametrize(
    ("equation", "weight", "bias"),
    [
        ("BTD,NHD->BTNH", (4, 6, 16), (4, 6)),
        ("BTNH,DNH->BTD", (16, 4, 6), (16,)),
        ("BTD,FD->BTF", (20, 16), (20,)),
        ("BTF,DF->BTD", (16, 20), (16,)),
    ],
)
def test_an_equation_says_the_shape_of_weight_and_bias_and_what_they_do(equation, weight, bias):
    layer = filled(nn.Linear(equation, placeholders(), bias=True))
    assert (layer.w.shape, layer.b.shape) == (weight, bias)
    x = np.random.default_rng(9).normal(size=EQUATIONS.get(equation, ((3, 5, 20),))[0])
    y = np.einsum(equation, x, np.asarray(layer.w[...], np.float64)) + np.asarray(layer.b[...])
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), y, rtol=1e-5, atol=1e-5)


def test_matrices_have_the_models_dtype_and_vectors_float32():
    layer = nn.Linear("BTD,FD->BTF", placeholders(jnp.bfloat16).stacked(3), bias=True)
    assert (layer.w.shape, layer.w.dtype) == ((3, 20, 16), jnp.bfloat16)
    assert (layer.b.shape, layer.b.dtype) == ((3, 20), jnp.float32)
    assert layer.w.get_metadata()["dims"] == "LFD"
    lora = placeholders(jnp.bfloat16).lora("RD", 5)
    assert (lora.shape, lora.dtype) == ((5, 16), jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_have_their_statistics_in_float32(kind, dtype):
    make, eps = placeholders(dtype), 1e-5
    norm = filled(nn.LayerNorm(make, eps=eps) if kind == "layer" else nn.RMSNorm(make, eps=eps))
    x = (100 + jax.random.normal(jax.random.key(0), (3, 5, 16))).astype(dtype)
    wide = np.asarray(x, np.float64)
    if kind == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * np.asarray(norm.scale[...])
    y += np.asarray(norm.bias[...]) if kind == "layer" else 0
    assert norm(x).dtype == dtype
    tolerance = 1e-4 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), y, rtol=tolerance, atol=tolerance)
