"""The kernels of norms compute what the plain formula does, and its gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import norm, norm_tpu
from prompteol_jax.ops.scan import NONE, Saved

KINDS = {"layer": (True, True), "rms": (False, False)}


def both(kind, x, scale, bias, weights):
    """Value and gradients of a norm and a residual connection: the reference, and the kernels."""
    centered, _ = KINDS[kind]

    def value(fork, x, scale, bias):
        y, x = fork(norm.Norm(1e-5, centered), Saved(x), scale, bias)
        return (y * weights[0] + x * weights[1]).sum(), y

    return [
        jax.value_and_grad(lambda *o, fork=fork: value(fork, *o), argnums=(0, 1, 2), has_aux=True)(
            x, scale, bias
        )
        for fork in (norm.fork, partial(norm_tpu.fork, interpret=True))
    ]


def operands(kind, rows=2, tokens=128, width=256):
    draws = jax.random.split(jax.random.key(0), 5)
    x, *weights = (jax.random.normal(k, (rows, tokens, width)) * 3 + 1 for k in draws[:3])
    scale, bias = (jax.random.normal(k, (width,)) for k in draws[3:])
    return x, scale, bias if KINDS[kind][1] else None, weights


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_formula(kind):
    wanted, found = both(kind, *operands(kind))
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5 * float(jnp.abs(one).max()))


def test_the_kernel_subtracts_a_large_mean_before_it_squares():
    x, scale, bias, _ = operands("layer")
    x = x + 1000.0
    kernel = partial(norm_tpu.fork, interpret=True)
    found, _ = kernel(norm.Norm(1e-5, centered=True), Saved(x), scale, bias)
    wide = np.asarray(x, np.float64)
    centered = wide - wide.mean(-1, keepdims=True)
    wanted = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


def test_a_mesh_changes_nothing():
    given = operands("layer")
    alone = both("layer", *given)[1]
    with jax.set_mesh(make_mesh((2, 4))):
        spread = jax.jit(lambda *o: both("layer", *o)[1])(*given)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_why_the_reference_runs_can_be_told():
    def reason(*shape):
        x = Saved(jnp.zeros(shape))
        return norm_tpu.supports(norm.Norm(1e-5, centered=True), x, x.value, None, NONE)

    assert reason(2, 128, 256) is None
    assert reason(2, 4, 1, 8) == "not supported: 4 axes"
    assert reason(2, 12, 256) == "not supported: 12 tokens of 256 features, no multiples of 128"
    with jax.set_mesh(make_mesh((4, 1), jax.devices()[:4])):
        assert reason(2, 128, 256) == "2 rows do not divide over 4 devices"
