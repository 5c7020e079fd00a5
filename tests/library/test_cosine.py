"""Cosines are those of the formula; what has no cosine is refused."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax import cosine
from prompteol_jax.errors import NotFinite, UserError, WrongType

pytestmark = pytest.mark.unit


def test_every_pair_has_its_cosine():
    a, b = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, -5.0], [4.0, 3.0]])
    expected = [[1.0, 0.0, 0.8], [0.6, -0.8, 0.96]]
    np.testing.assert_allclose(cosine.cosine_matrix(a, b), expected, atol=1e-7)


def test_one_vector_is_a_list_of_one():
    assert cosine.as_vectors(np.ones(3, np.float32)).shape == (1, 3)
    with pytest.raises(WrongType, match=r"\(1, 1, 3\); give \[n, D\]"):
        cosine.as_vectors(np.ones((1, 1, 3)))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_without_a_direction_is_refused(value):
    with pytest.raises(NotFinite, match="has no cosine"):
        cosine.unit_rows(np.full((1, 2), value))


def test_vectors_of_two_widths_are_refused():
    with pytest.raises(UserError, match="vectors of 2 and 3 features"):
        cosine.cosine_matrix(np.ones((1, 2)), np.ones((1, 3)))
