"""Laws of the loss: the formula in float64, however the scores are cut and wherever they lie."""

import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import axes
from prompteol_jax.mesh import make_mesh
from train.losses import blockwise as loss
from train.losses.infonce import infonce
from train.losses.loss import RESERVED, check_metrics
from train.run.metrics import step_record

B, D = 24, 16
BLOCKS = {"one": 2**24, "some": 2 * B * B // 3, "many": 1}
GRADIENTS = jax.value_and_grad(infonce, argnums=(0, 1, 2), has_aux=True)
PAIR_GRADIENTS = jax.value_and_grad(infonce, argnums=(0, 1), has_aux=True)


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
    own = np.arange(len(p))
    d_scores = (p - np.eye(*p.shape)) / len(p) / temperature
    d_units = [d_scores @ alternatives, *np.split(d_scores.T @ units[0], len(roles) - 1)]
    gradients = [
        (d - unit * (d * unit).sum(1, keepdims=True)) / length
        for d, unit, length in zip(d_units, units, lengths, strict=True)
    ]
    return -np.log(p[own, own]).mean(), (scores.argmax(1) == own).mean(), gradients


@pytest.mark.first("pairs-many", "triplets-one", "triplets-some")
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("roles", [2, 3], ids=["pairs", "triplets"])
def test_loss_and_gradients_are_those_of_the_formula(roles, block, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", block)
    z = vectors(roles)
    (value, metrics), gradients = (PAIR_GRADIENTS if roles == 2 else GRADIENTS)(*z)
    expected, share, expected_gradients = reference(z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert 0 < share < 1
    np.testing.assert_allclose(metrics["accuracy"], share, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_metrics_that_a_run_would_overwrite_or_drop_are_refused():
    check_metrics({"accuracy": jnp.float32(1)})
    wrong = {"lr": jnp.float32(1), "step": jnp.float32(1), "cosine": jnp.ones(B)}
    with pytest.raises(ValueError, match=r"lr, step are the run's own.*; metrics cosine are no sc"):
        check_metrics(wrong)


def test_names_of_metrics_that_a_run_records_are_reserved():
    batch = SimpleNamespace(sentences=3, padding=0.0)
    record = step_record(1, {"loss": 1.0, "grad_norm": 1.0}, 1e-3, 1.0, batch)
    assert {*record, "finite_B"} == RESERVED


def test_temperature_divides_the_cosines():
    z = vectors(3)
    value, _ = infonce(*map(jnp.asarray, z), temperature=1.0)
    np.testing.assert_allclose(value, reference(z, temperature=1.0)[0], rtol=1e-5)


def test_lengths_of_vectors_do_not_matter():
    z = vectors(3)
    losses = [infonce(*(jnp.asarray(x) * scale for x in z))[0] for scale in (1, 7)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_indistinct_sentences_cost_the_logarithm_of_the_alternatives():
    same = jnp.ones((B, D))
    value, _ = infonce(same, same, same)
    np.testing.assert_allclose(value, np.log(2 * B), rtol=1e-6)


def test_a_zero_vector_has_a_finite_gradient():
    z = vectors(3)
    z[0][0] = 0
    (value, _), gradients = GRADIENTS(*z)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_sharded_batch_has_the_same_loss_and_gradients(block, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", block)
    z = vectors(3)
    alone = GRADIENTS(*z)
    mesh = make_mesh((4, 2))
    spread = [jax.device_put(x, axes.sharding("BD", x.shape, mesh)) for x in z]
    with jax.set_mesh(mesh):
        shared = jax.jit(GRADIENTS)(*spread)
    for ours, theirs in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def check_reference(B, D, mesh):
    rng = np.random.default_rng(B)
    anchor = rng.standard_normal((B, D), np.float32)
    similar = [anchor + 2 * rng.standard_normal((B, D), np.float32) for _ in range(2)]
    z = [anchor, *similar]
    expected, share, gradients = reference(z)
    mesh = make_mesh(mesh)
    spread = [jax.device_put(x, axes.sharding("BD", x.shape, mesh)) for x in z]
    with jax.set_mesh(mesh):
        (value, metrics), ours = jax.jit(GRADIENTS)(*spread)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], share, atol=1e-6)
    for found, wanted in zip(ours, gradients, strict=True):
        assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)])
def test_a_batch_of_1024_is_that_of_float64(mesh, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 2**17)
    check_reference(1024, 64, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (4, 2), (2, 4)])
def test_a_batch_of_4096_is_that_of_float64(mesh, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 2**22)
    check_reference(4096, 256, mesh)


def test_equal_scores_count_for_the_first(monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 6 * B)
    same = jnp.ones((B, D))
    assert infonce(same, same, same)[1]["accuracy"] == np.float32(1 / B)


def largest_score_matrix(B, mesh):
    """Of one device, in the compiled program of loss and gradients, in numbers."""
    mesh = make_mesh(mesh)
    place = axes.sharding("BD", (B, D), mesh)
    z = [jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=place)] * 3
    with jax.set_mesh(mesh):
        text = jax.jit(GRADIENTS).lower(*z).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[(\d+,\d+)\]", text)}
    return max(math.prod(shape) for shape in shapes if D not in shape)


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (4, 2)])
def test_the_matrix_of_scores_is_never_whole_and_is_shared_by_all_devices(mesh, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 2**16)
    B, devices = 2048, mesh[0] * mesh[1]
    assert 2 * B * B // devices > 2**16
    assert largest_score_matrix(B, mesh) == 2**16


def test_memory_of_a_batch_of_65536_stays_bounded():
    """What the compiler sets aside on one of eight devices, vectors and gradients included."""
    B, width, devices = 65536, 768, 8
    mesh = make_mesh((devices, 1))
    place = axes.sharding("BD", (B, width), mesh)
    z = [jax.ShapeDtypeStruct((B, width), jnp.float32, sharding=place)] * 3
    with jax.set_mesh(mesh):
        memory = jax.jit(GRADIENTS).lower(*z).compile().memory_analysis()
    vectors = 3 * B * width * 4 // devices
    assert memory.temp_size_in_bytes < 4 * vectors + 6 * 4 * loss.BLOCK
