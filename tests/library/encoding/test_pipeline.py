"""Laws of the pipeline: results in their order, a few in flight, all of them finite."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.encoding.pipeline import fetch_behind, refuse_not_finite
from prompteol_jax.errors import NotFinite


@pytest.mark.parametrize("ahead", [0, 2, 9])
def test_results_are_fetched_in_their_order_while_later_ones_are_computed(ahead):
    launched = []

    def launch():
        for n in range(5):
            launched.append(n)
            yield n, jnp.full(3, n)

    for n, (label, z) in enumerate(fetch_behind(launch(), ahead)):
        assert len(launched) == min(5, n + ahead + 1)
        assert label == n
        assert isinstance(z, np.ndarray) and (z == n).all()
    assert n == 4


def test_nothing_launched_is_nothing_fetched():
    assert list(fetch_behind(iter(()))) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_an_error_that_names_its_text(bad):
    z_nD = np.zeros((3, 4), np.float32)
    refuse_not_finite(z_nD, ["a", "b", "c"])
    z_nD[1, 2] = z_nD[2, 0] = bad
    with pytest.raises(NotFinite, match="candidate x: 2 vectors are not finite, .* that of 'b'"):
        refuse_not_finite(z_nD, ["a", "b", "c"], "candidate x: ")
