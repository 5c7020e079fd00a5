"""Laws of `PlatformJit`: large matrices on a TPU get larger tiles, and nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.models.published import published
from prompteol_jax.ops import platform
from prompteol_jax.ops.platform_jit import PlatformJit, options

LARGER = {"xla_tpu_scoped_vmem_limit_kib": "32768"}
WHOLE = {"xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false"}


@pytest.mark.parametrize(
    ("model", "kind", "shape", "expected"),
    [
        ("opt-1.3b", "TPU v5 lite", (1, 1), {}),
        ("opt-6.7b", "TPU v5 lite", (1, 1), LARGER),
        ("llama-2-7b", "TPU v5p", (1, 1), LARGER),
        ("opt-6.7b", "TPU v5 lite", (1, 2), {}),
        ("opt-66b", "TPU v5p", (1, 2), LARGER),
        ("gemma-2-9b", "TPU v6 lite", (1, 1), {"xla_tpu_scoped_vmem_limit_kib": "65536"}),
        ("opt-6.7b", "TPU v4", (1, 1), {}),
        ("opt-6.7b", "cpu", (1, 1), {}),
    ],
)
def test_a_matrix_larger_than_the_core_holds_gets_larger_tiles(
    monkeypatch, model, kind, shape, expected
):
    monkeypatch.setattr(platform, "kind", lambda: kind)
    config = published(model)
    with jax.set_mesh(make_mesh(shape)):
        assert options(config.D * config.F) == expected


@pytest.mark.parametrize(
    ("kind", "shape", "is_whole"),
    [
        ("TPU v5e", (2, 1), True),
        ("TPU v4", (4, 1), True),
        ("TPU v5e", (2, 2), False),
        ("TPU v5e", (1, 1), False),
        ("cpu", (2, 1), False),
    ],
)
def test_gradients_are_scattered_in_one_piece_where_rows_alone_are_sharded(
    monkeypatch, kind, shape, is_whole
):
    monkeypatch.setattr(platform, "kind", lambda: kind)
    with jax.set_mesh(make_mesh(shape)):
        found = options(1)
    assert found == (WHOLE if is_whole else {})


def test_it_computes_traces_and_lowers_as_jit_does():
    double = PlatformJit(lambda x: 2 * x, lambda x: x.size)
    x = jnp.arange(3)
    assert double(x).tolist() == double(x=x).tolist() == [0, 2, 4]
    assert double.trace(x).lower().compile()(x).tolist() == [0, 2, 4]
    assert double.lower(x).as_text() == jax.jit(lambda x: 2 * x).lower(x).as_text()


def test_options_reach_the_compiler(monkeypatch):
    monkeypatch.setattr(platform, "kind", lambda: "TPU v5e")
    with pytest.raises(Exception, match="xla_tpu_scoped_vmem_limit_kib"):
        PlatformJit(lambda x: x, lambda x: 2**26)(jnp.zeros(1))


def test_inside_another_function_it_leaves_the_options_to_that_one(monkeypatch):
    monkeypatch.setattr(platform, "kind", lambda: "TPU v5e")
    double = PlatformJit(lambda x: 2 * x, lambda x: 2**26)
    assert jax.jit(lambda x: double(x) + 1)(jnp.arange(3)).tolist() == [1, 3, 5]
    assert jax.eval_shape(double, jnp.arange(3)).shape == (3,)
