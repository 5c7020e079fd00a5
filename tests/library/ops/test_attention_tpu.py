"""The kernel of packed rows computes what plain attention does, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import attention, attention_tpu

T = 128


def operands(B, N, K, H, C, seed=0):
    keys = jax.random.split(jax.random.key(seed), 6)
    shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H), (C, K, H), (C, K, H)]
    q, k, v, k_C, v_C = (
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)
    )
    cuts = np.sort(np.random.default_rng(seed).choice(np.arange(1, T), (B, 5)), axis=1)
    start = np.zeros((B, T), np.int32)
    for row, ends in zip(start, cuts, strict=True):
        for cut in ends:
            row[cut:] = cut
    return q, k, v, jnp.asarray(start), (k_C, v_C) if C else None


def plain(q, k, v, start, prefix, head=0, angles=None):
    mask = attention.visible(T, None, start, head)
    turn = angles and (angles, angles)
    return attention.attend(q, k, v, mask, prefix, head=head, turn=turn)


def fused(q, k, v, start, prefix, head=0, angles=None):
    return attention_tpu.attend(q, k, v, start, prefix, angles, head=head, interpret=True)


@pytest.mark.parametrize(
    ("N", "K", "H", "C", "head", "turned"),
    [(2, 1, 16, 4, 0, False), (4, 2, 16, 4, 0, True), (1, 1, 16, 0, 3, True)],
)
def test_values_and_gradients_are_those_of_plain_attention(N, K, H, C, head, turned):
    q, k, v, start, prefix = operands(2, N, K, H, C)
    weight = jax.random.normal(jax.random.key(9), q.shape)
    place = jnp.arange(T) - start
    angles = attention.rotary_angles(place, jnp.linspace(0.1, 1.0, H // 2)) if turned else None

    def value(attend, operands):
        y = attend(*operands[:3], start, operands[3], head, angles)
        return (y * weight).sum(), y

    wanted, found = (
        jax.value_and_grad(lambda o, attend=attend: value(attend, o), has_aux=True)(
            (q, k, v, prefix)
        )
        for attend in (plain, fused)
    )
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1.0, float(jnp.abs(a).max())))


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    q, k, v, start, prefix = operands(2, 2, 2, 16, 4)

    def total(operands):
        q, k, v, prefix = operands
        return jnp.square(fused(q, k, v, start, prefix)).sum()

    wanted = jax.value_and_grad(total)((q, k, v, prefix))
    with jax.set_mesh(make_mesh((2, 2))):
        found = jax.jit(jax.value_and_grad(total))((q, k, v, prefix))
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("T", "takes"), [(128, True), (256, True), (64, False), (24, False)])
def test_only_whole_tiles_of_tokens_are_taken(T, takes):
    assert attention_tpu.applies(T) == takes
