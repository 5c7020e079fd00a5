"""Kernels for long rows give what the reference gives, and say what they do not take."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import (
    attention,
    long_attention_gpu,
    long_attention_tpu,
    platform,
    rope,
    select,
)
from prompteol_jax.ops.context import LONG, AttentionContext, AttentionSpec
from prompteol_jax.ops.scan import Saved

B, T, C, N, K, H = 1, LONG + 100, 5, 2, 1, 128
SPEC = AttentionSpec(H**-0.5)
KERNELS = {
    "tpu": partial(long_attention_tpu.attend, interpret=True),
    "gpu": partial(long_attention_gpu.attend, implementation="xla"),
}


def draw(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x, jnp.bfloat16)


QKV = [Saved(draw(B, T, n, H, seed=n + i)) for i, n in enumerate((N, K, K))]
PREFIX = draw(C, K, H, seed=7), draw(C, K, H, seed=8)
FREQUENCY = jnp.asarray(100.0 ** -np.arange(0, 1, 2 / H), jnp.float32)
CONTEXT = AttentionContext(None, ropes=(rope.rope_table(C + jnp.arange(T)[None], FREQUENCY),))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["alone", "prefix"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_the_references_values(name, prefix):
    y = jax.jit(lambda qkv: KERNELS[name](*qkv, CONTEXT, SPEC, prefix))(QKV)
    expected = jax.jit(lambda qkv: attention.attend(*qkv, CONTEXT, SPEC, prefix))(QKV)
    assert y.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["alone", "prefix"])
def test_the_gradient_of_the_tpu_kernel_is_the_references(prefix):
    weight = draw(B, T, N, H, seed=9).astype(jnp.float32)

    def gradient(attend):
        def value(own, prefix):
            return (attend(*map(Saved, own), CONTEXT, SPEC, prefix) * weight).sum()

        return jax.jit(jax.grad(value, (0, 1)))([x.value for x in QKV], prefix)

    found, expected = gradient(KERNELS["tpu"]), gradient(attention.attend)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("N", "K", "H", "shape", "held"),
    [
        (4, 1, 64, None, 2**24),
        (6, 2, 32, None, 2**24),
        (4, 2, 128, (2, 2), 2**24),
        (2, 1, 128, None, 0),
    ],
    ids=["pairs of heads", "odd groups", "mesh", "more than the core holds"],
)
def test_groups_and_meshes_change_nothing(N, K, H, shape, held, monkeypatch):
    monkeypatch.setattr(long_attention_tpu, "_HELD", held)
    rows = 2 if shape else 1
    qkv = [Saved(draw(rows, T, n, H, seed=n + i)) for i, n in enumerate((N, K, K))]
    prefix, spec = (draw(C, K, H, seed=7), draw(C, K, H, seed=8)), AttentionSpec(H**-0.5)
    context = AttentionContext(None)
    expected = attention.attend(*qkv, context, spec, prefix)
    with jax.set_mesh(make_mesh(shape or (1, 1))):
        y = jax.jit(lambda qkv, prefix: KERNELS["tpu"](*qkv, context, spec, prefix))(qkv, prefix)
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), atol=2e-2)


def test_a_head_that_is_turned_in_part_is_left_to_splash_attention():
    part = (jnp.zeros((1, T, 16)),) * 2
    assert long_attention_tpu._fits(128, T, CONTEXT.ropes[0])
    assert not long_attention_tpu._fits(128, T, part)
    assert not long_attention_tpu._fits(96, T, None)
    assert not long_attention_tpu._fits(128, 2**20, None)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("change", "spec", "reason"),
    [
        ({}, SPEC, None),
        (dict(window=8), SPEC, "not supported: window"),
        (dict(segment_start_BT=0), AttentionSpec(1.0, 2.0), "not supported: packed rows, softcap"),
        (dict(prefix_mask_C=0), SPEC, "not supported: padded prefix"),
        (dict(query_BQ=0), SPEC, "queries are not all tokens"),
    ],
)
def test_what_a_kernel_does_not_take_has_a_reason(name, change, spec, reason, monkeypatch):
    monkeypatch.setattr(platform, "current", lambda: name)
    context = dataclasses.replace(CONTEXT, **change)
    assert select.why_not("long attention", *QKV, context, spec, None) == reason


def test_float32_and_wide_heads_have_a_reason(monkeypatch):
    single = [Saved(x.value.astype(jnp.float32)) for x in QKV]
    monkeypatch.setattr(platform, "current", lambda: "gpu")
    assert select.why_not("long attention", *single, CONTEXT, SPEC, None).endswith("float32")
    wide = [Saved(jnp.zeros((B, T, 1, 256), jnp.bfloat16))] * 3
    assert "heads of 256" in select.why_not("long attention", *wide, CONTEXT, SPEC, None)
