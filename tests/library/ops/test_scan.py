"""Laws of the scan over layers: what is kept changes no gradient, and is read where it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.ops import scan

L, B, D = 3, 4, 8


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


XS = {"a": draw(L, D, D), "b": draw(L, D, D, seed=1), "n": jnp.arange(L)}
X, BESIDE = draw(B, D, seed=2), (draw(B, D, seed=3), None)


def layer(x, xs, beside):
    """Two products, of which the first is noted, and a residual connection."""
    mask, _ = beside
    h = scan.keep(jnp.sin(x @ xs["a"]) + xs["n"])
    y = scan.relu(h @ xs["b"]) * mask
    return x + y, (h, y.sum())


def total(kind, trained, noting):
    def run(x, a):
        x, (h, sums) = scan.scan_layers(layer, x, XS | {"a": a}, BESIDE, kind)
        return jnp.square(x).sum() + (noting * (jnp.square(h).sum() + sums.sum()))

    return jax.jit(jax.value_and_grad(run, argnums=trained))(X, XS["a"])


@pytest.mark.parametrize("noting", [0.0, 1.0], ids=["x alone", "what is noted too"])
@pytest.mark.parametrize("trained", [0, 1, (0, 1)], ids=str)
@pytest.mark.parametrize("kind", ["dots", "full"])
def test_what_is_kept_changes_no_value_and_no_gradient(kind, trained, noting):
    wanted, found = total("none", trained, noting), total(kind, trained, noting)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(one).max()))


@pytest.mark.parametrize(("kind", "kept"), [("full", {}), ("dots", {"keep": 1, "relu": 1})])
def test_the_backward_pass_is_told_where_what_was_kept_lies(kind, kept):
    seen = []

    def asking(x, xs, beside):
        seen.append({"x": scan.kept_in(x), "a": scan.kept_in(xs["a"])})
        h = scan.keep(x @ xs["a"])
        y = scan.relu(h @ xs["b"])
        seen[-1] |= {"keep": scan.kept_in(h), "relu": scan.kept_in(y), "y": scan.kept_in(y + 1)}
        return x + y, None

    jax.grad(lambda x: scan.scan_layers(asking, x, XS, None, kind)[0].sum())(X)
    backward = seen[-1]
    places = {name for name, part in backward.items() if part is not None}
    assert places == {"x", "a", *kept}
    assert backward["a"].stack.shape == (L, D, D)
    assert all(backward[name].stack.shape == (L, B, D) for name in kept)


def test_gradients_of_what_is_beside_the_layers_are_refused():
    def run(mask):
        return scan.scan_layers(layer, X, XS, (mask, None), "dots")[0].sum()

    with pytest.raises(ValueError, match="beside the layers"):
        jax.grad(run)(BESIDE[0])


def test_outside_of_a_gradient_nothing_is_marked():
    assert scan.keep(X) is X
    assert scan.kept_in(X) is None
    assert not scan.differentiates()
