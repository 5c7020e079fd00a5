"""How vectors spread: known shapes have known numbers."""

import numpy as np
import pytest

from prompteol_jax.verify import geometry

pytestmark = pytest.mark.unit


def test_axes_use_every_dimension_and_a_line_uses_one():
    axes = np.concatenate([np.eye(8), -np.eye(8)]).astype(np.float32)
    found = geometry.spread(axes)
    assert found.dimensions == pytest.approx(8)
    assert found.same == 0
    assert found.mean_cosine == pytest.approx(-8 / 120)
    line = np.outer(np.arange(1, 9), [1, 2, 2]).astype(np.float32)
    found = geometry.spread(line)
    assert found.dimensions == pytest.approx(1)
    assert (found.same, found.mean_cosine) == (28, pytest.approx(1))


def test_lengths_do_not_matter_to_cosines():
    rng = np.random.default_rng(0)
    z_BD = rng.normal(size=(20, 16)).astype(np.float32)
    scaled = z_BD * rng.uniform(0.5, 2, (20, 1)).astype(np.float32)
    a, b = geometry.spread(z_BD), geometry.spread(scaled)
    assert a.cosines == pytest.approx(b.cosines, abs=1e-6)
    assert len(a.cosines) == 20 * 19 / 2


def test_refuses_a_vector_that_points_nowhere():
    with pytest.raises(ValueError, match="1 vectors are zero"):
        geometry.spread(np.array([[0, 0], [1, 0]], np.float32))
