"""Laws of the loss: the formula in float64, however the scores are cut and wherever they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import axes
from train import loss
from train.loss import contrastive_loss

B, D = 24, 16
GRADIENTS = jax.value_and_grad(contrastive_loss, argnums=(0, 1, 2), has_aux=True)
PAIR_GRADIENTS = jax.value_and_grad(contrastive_loss, argnums=(0, 1), has_aux=True)


def vectors(roles, seed=0):
    """Anchors, and roles that resemble them, of lengths far from one."""
    rng = np.random.default_rng(seed)
    anchor = rng.standard_normal((B, D))
    similar = [anchor + rng.standard_normal((B, D)) for _ in range(roles - 1)]
    return [(z * rng.uniform(0.1, 30, (B, 1))).astype(np.float32) for z in (anchor, *similar)]


def reference(roles, temperature=0.05):
    """Loss, accuracy and gradients of the formula, step by step in float64."""
    roles = [z.astype(np.float64) for z in roles]
    lengths = [np.linalg.norm(z, axis=1, keepdims=True) for z in roles]
    units = [z / length for z, length in zip(roles, lengths, strict=True)]
    alternatives = np.concatenate(units[1:])
    scores = units[0] @ alternatives.T / temperature
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    own = np.arange(B)
    d_scores = (p - np.eye(B, len(alternatives))) / B / temperature
    d_units = [d_scores @ alternatives, *np.split(d_scores.T @ units[0], len(roles) - 1)]
    gradients = [
        (d - unit * (d * unit).sum(1, keepdims=True)) / length
        for d, unit, length in zip(d_units, units, lengths, strict=True)
    ]
    return -np.log(p[own, own]).mean(), (scores.argmax(1) == own).mean(), gradients


@pytest.mark.parametrize("whole", [2**24, 2 * B * B // 3, 1], ids=["whole", "chunks", "rows"])
@pytest.mark.parametrize("roles", [2, 3], ids=["pairs", "triplets"])
def test_loss_and_gradients_are_those_of_the_formula(roles, whole, monkeypatch):
    monkeypatch.setattr(loss, "_WHOLE", whole)
    z = vectors(roles)
    (value, accuracy), gradients = (PAIR_GRADIENTS if roles == 2 else GRADIENTS)(*z)
    expected, share, expected_gradients = reference(z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert 0 < share < 1
    np.testing.assert_allclose(accuracy, share, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_temperature_divides_the_cosines():
    z = vectors(3)
    value, _ = contrastive_loss(*map(jnp.asarray, z), temperature=1.0)
    np.testing.assert_allclose(value, reference(z, temperature=1.0)[0], rtol=1e-5)


def test_lengths_of_vectors_do_not_matter():
    z = vectors(3)
    losses = [contrastive_loss(*(jnp.asarray(x) * scale for x in z)) for scale in (1, 7)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_indistinct_sentences_cost_the_logarithm_of_the_alternatives():
    same = jnp.ones((B, D))
    value, _ = contrastive_loss(same, same, same)
    np.testing.assert_allclose(value, np.log(2 * B), rtol=1e-6)


def test_a_zero_vector_has_a_finite_gradient():
    z = vectors(3)
    z[0][0] = 0
    (value, _), gradients = GRADIENTS(*z)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("whole", [2**24, 2 * B * B // 3], ids=["whole", "chunks"])
def test_a_sharded_batch_has_the_same_loss_and_gradients(whole, monkeypatch):
    monkeypatch.setattr(loss, "_WHOLE", whole)
    z = vectors(3)
    alone = GRADIENTS(*z)
    mesh = axes.make_mesh((4, 2))
    spread = [jax.device_put(x, axes.sharding("BD", x.shape, mesh)) for x in z]
    with jax.set_mesh(mesh):
        shared = jax.jit(GRADIENTS)(*spread)
    for ours, theirs in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_whole_score_matrix_is_never_formed_when_it_is_large(monkeypatch):
    monkeypatch.setattr(loss, "_WHOLE", 2 * B * B // 8)
    z = [jnp.asarray(x) for x in vectors(3)]
    text = jax.jit(GRADIENTS).lower(*z).as_text()
    assert f"{B // 8}x{2 * B}x" in text
    assert f"{B}x{2 * B}x" not in text
