"""The parts that blocks are composed of compute their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import nn
from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops.context import AttentionContext, AttentionSpec, visible
from prompteol_jax.ops.scan import NONE, Saved

SIZES = dict(D=16, N=4, K=2, H=6, I=24, J=12, F=20, V=30)
X_BTD = jnp.asarray(np.random.default_rng(9).normal(size=(2, 5, 16)), jnp.float32)
CONTEXT = AttentionContext(visible(5))


def filled(module):
    """Put distinct numbers in the place of all placeholders."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), module)


def make():
    return nn.Placeholders(SIZES, jnp.float32, make_mesh((1, 1)))


def affine(layer, x):
    y = np.einsum(layer.equation, x, np.asarray(layer.w[...], np.float64))
    return y if layer.b is None else y + np.asarray(layer.b[...])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "activation", [None, jax.nn.silu, jax.nn.gelu], ids=["none", "silu", "gelu"]
)
def test_feed_forward_layers_are_their_formulas(activation, bias):
    gated = filled(nn.GatedMlp(make(), activation or jax.nn.relu, bias=bias))
    plain = filled(nn.PlainMlp(make(), activation, bias=bias))
    act = activation or jax.nn.relu
    wide = np.asarray(act(affine(gated.gate, X_BTD))) * affine(gated.up, X_BTD)
    np.testing.assert_allclose(
        gated(X_BTD, CONTEXT), affine(gated.down, wide), rtol=1e-4, atol=1e-3
    )
    wide = np.asarray(act(affine(plain.up, X_BTD)))
    np.testing.assert_allclose(
        plain(X_BTD, CONTEXT), affine(plain.down, wide), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("dims", ["D", "H"])
def test_a_norm_is_over_the_stream_or_each_head_and_may_scale_by_one_more(dims, plus_one):
    x = X_BTD if dims == "D" else X_BTD[..., :12].reshape(2, 5, 2, 6)
    norm = filled(nn.RMSNorm(make(), eps=1e-5, dims=dims, plus_one=plus_one))
    wide = np.asarray(x, np.float64)
    y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    y *= np.asarray(norm.scale[...]) + plus_one
    np.testing.assert_allclose(norm(x), y, rtol=1e-5, atol=1e-6)
    forked, residual = norm.fork(Saved(x), NONE)
    np.testing.assert_array_equal(forked, norm(x))
    assert residual is x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scale_of_an_embedding_is_rounded_to_its_dtype(dtype):
    table = nn.Embedding(nn.Placeholders(SIZES, jnp.dtype(dtype), make_mesh((1, 1))), scale=1.2345)
    table = filled(table)
    ids = jnp.array([[3, 7]])
    factor = jnp.asarray(1.2345, dtype)
    np.testing.assert_array_equal(table(ids, ids), table.tokens[...][ids] * factor)


@pytest.mark.parametrize(
    ("settings", "biases"),
    [
        ({}, set()),
        (dict(bias=True), {"q", "k", "v", "o"}),
        (dict(bias=True, out_bias=False), {"q", "k", "v"}),
    ],
)
def test_attention_has_the_biases_that_are_asked_for(settings, biases):
    attention = nn.Attention(make(), **settings)
    assert {n for n in "qkvo" if getattr(attention, n).b is not None} == biases
    assert attention.spec == AttentionSpec(6**-0.5)
    assert attention.q_norm is None


def test_norms_of_heads_make_the_length_of_queries_and_keys_irrelevant():
    attention = filled(nn.Attention(make(), head_norm_eps=1e-12))
    longer = jax.tree.map(lambda x: x, attention)
    for layer in (longer.q, longer.k):
        layer.w.set_value(7 * layer.w[...])
    one, other = (a(X_BTD, CONTEXT, None)[0] for a in (attention, longer))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
