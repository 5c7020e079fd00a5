"""Laws of the scan over layers: what is saved changes no gradient, and is read in its stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.ops import scan

L, B, D = 3, 4, 8


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


XS = {"a": draw(L, D, D), "b": draw(L, D, D, seed=1), "n": jnp.arange(L)}
X, CONSTS = draw(B, D, seed=2), (draw(B, D, seed=3), None)


def layer(x, xs, consts, tape):
    """Two products, of which the first is a result too, and a residual connection."""
    mask, _ = consts
    h = tape.save(jnp.sin(x.value @ xs["a"].value) + xs["n"].value).value
    y = scan.relu(h @ xs["b"].value, tape).value * mask
    return x.value + y, (h, y.sum())


def total(kind, trained, with_ys):
    def run(x, a):
        x, (h, sums) = scan.scan_layers(layer, x, XS | {"a": a}, CONSTS, kind)
        return jnp.square(x).sum() + (with_ys * (jnp.square(h).sum() + sums.sum()))

    return jax.jit(jax.value_and_grad(run, argnums=trained))(X, XS["a"])


@pytest.mark.first("dots-0-its ys too", "dots-1-x alone", "full-(0, 1)-x alone")
@pytest.mark.parametrize("with_ys", [0.0, 1.0], ids=["x alone", "its ys too"])
@pytest.mark.parametrize("trained", [0, 1, (0, 1)], ids=str)
@pytest.mark.parametrize("kind", ["dots", "full"])
def test_what_is_saved_changes_no_value_and_no_gradient(kind, trained, with_ys):
    wanted, found = total("none", trained, with_ys), total(kind, trained, with_ys)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(one).max()))


@pytest.mark.parametrize(("kind", "saved"), [("full", set()), ("dots", {"saved", "relu"})])
def test_the_backward_pass_gets_saved_values_with_their_slices(kind, saved):
    seen = []

    def asking(x, xs, consts, tape):
        h = tape.save(x.value @ xs["a"].value)
        y = scan.relu(h.value @ xs["b"].value, tape)
        seen.append({"x": x.slice, "a": xs["a"].slice, "saved": h.slice, "relu": y.slice})
        assert tape.differentiates
        return x.value + y.value, None

    jax.grad(lambda x: scan.scan_layers(asking, x, XS, None, kind)[0].sum())(X)
    backward = {name: where for name, where in seen[-1].items() if where is not None}
    assert set(backward) == {"x", "a", *saved}
    assert backward["a"].stack.shape == (L, D, D)
    assert all(backward[name].stack.shape == (L, B, D) for name in saved)


def test_gradients_of_consts_are_refused():
    def run(mask):
        return scan.scan_layers(layer, X, XS, (mask, None), "dots")[0].sum()

    with pytest.raises(ValueError, match="consts of scan_layers"):
        jax.grad(run)(CONSTS[0])


def test_outside_of_a_gradient_nothing_is_saved():
    saved = scan.NONE.save(X)
    assert saved.value is X and saved.slice is None
    assert not scan.NONE.differentiates
