"""The kernel of packed rows computes what plain attention does, and its gradient."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import attention, attention_tpu
from prompteol_jax.ops.context import AttentionContext, AttentionSpec, visible
from prompteol_jax.ops.rope import rope_table
from prompteol_jax.ops.scan import Saved

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


def attend(implementation, q, k, v, start, prefix, prefix_tokens=0, angles=None, cap=None, **how):
    context = AttentionContext(
        visible(T, None, start, prefix_tokens),
        ropes=() if angles is None else (angles,),
        segment_start_BT=start,
        prefix_tokens=prefix_tokens,
    )
    spec = AttentionSpec(q.shape[-1] ** -0.5, cap)
    return implementation(*map(Saved, (q, k, v)), context, spec, prefix, **how)


plain = partial(attend, attention.attend)
fused = partial(attend, attention_tpu.attend, interpret=True)


@pytest.mark.fast("1-1-16-0-3-True-None")
@pytest.mark.parametrize(
    ("N", "K", "H", "C", "prefix_tokens", "rotated", "cap"),
    [
        (2, 1, 16, 4, 0, False, None),
        (4, 2, 16, 4, 0, True, None),
        (1, 1, 16, 0, 3, True, None),
        (2, 1, 16, 4, 0, True, 1.5),
    ],
)
def test_values_and_gradients_are_those_of_plain_attention(N, K, H, C, prefix_tokens, rotated, cap):
    q, k, v, start, prefix = operands(2, N, K, H, C)
    weight = jax.random.normal(jax.random.key(9), q.shape)
    position = jnp.arange(T) - start
    angles = rope_table(position, jnp.linspace(0.1, 1.0, H // 2)) if rotated else None

    def value(attend, operands):
        y = attend(*operands[:3], start, operands[3], prefix_tokens, angles, cap)
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


def test_why_the_reference_runs_can_be_told():
    q, k, v, start, prefix = operands(1, 2, 1, 16, 4)
    spec, mask = AttentionSpec(0.25), visible(T, None, start)
    fits = AttentionContext(mask, segment_start_BT=start)

    def reason(context=fits, spec=spec, tokens=T, **changes):
        context = dataclasses.replace(context, **changes)
        own = [Saved(x[:, :tokens]) for x in (q, k, v)]
        return attention_tpu.supports(*own, context, spec, prefix)

    assert reason() is None
    assert reason(query_BQ=jnp.zeros((1, 1), jnp.int32)) == "queries are not all tokens"
    assert reason(segment_start_BT=None) == "rows are not packed"
    assert reason(tokens=24) == "not supported: rows of 24 tokens, no multiple of 128 up to 512"
    assert reason(window=5, spec=AttentionSpec(0.25, 30.0)) == "not supported: window"
    assert reason(prefix_mask_C=jnp.ones(4, bool)) == "not supported: padded prefix"
    half = (jnp.ones((1, T, 4)),) * 2  # four of eight pairs
    both = "not supported: bidirectional, rope of a part of each head"
    assert reason(ropes=(half,), end_BT=start + 1) == both
