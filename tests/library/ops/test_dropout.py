"""Laws of dropout: masks follow sentences, at their rate, without any pattern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.ops import dropout


def keys(sentences, T, seed=0):
    """Keys of whole sentences, one a row."""
    return dropout.token_keys(jax.random.key(seed), *jnp.indices((sentences, T)))


def test_the_mask_of_a_sentence_does_not_depend_on_where_it_is_packed():
    x = jnp.ones((8, 5, 64))
    whole = dropout.drop(x, keys(8, 5), 0.3)
    np.testing.assert_array_equal(
        dropout.drop(x[2:5], jax.tree.map(lambda word: word[2:5], keys(8, 5)), 0.3), whole[2:5]
    )
    sentence_BT = jnp.array([[6, 6, 6, 1, 1, 1, 1]])  # the beginnings of two, in one row
    own = dropout.token_keys(jax.random.key(0), sentence_BT, jnp.array([[0, 1, 2, 0, 1, 2, 3]]))
    packed = dropout.drop(jnp.ones((1, 7, 64)), own, 0.3)
    np.testing.assert_array_equal(packed[0, :3], whole[6, :3])
    np.testing.assert_array_equal(packed[0, 3:], whole[1, :4])
    assert len(np.unique(np.asarray(whole).reshape(40, -1), axis=0)) == 40


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_dropout_zeroes_at_its_rate_and_scales_up_the_rest(rate):
    y = np.asarray(dropout.drop(jnp.ones((4, 100, 4, 25)), keys(4, 100), rate))
    assert abs((y == 0).mean() - rate) < 4 * (rate * (1 - rate) / y.size) ** 0.5
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    for axis in range(4):  # of every token and of every place
        share = (y == 0).mean(tuple({0, 1, 2, 3} - {axis}))
        deviation = (rate * (1 - rate) * len(share) / y.size) ** 0.5
        assert np.abs(share - rate).max() < 5 * deviation


def test_masks_of_neighbors_in_every_direction_are_uncorrelated():
    kept = np.asarray(dropout.drop(jnp.ones((16, 32, 256)), keys(16, 32), 0.5)) != 0
    signs = np.where(kept, 1.0, -1.0)
    for axis in range(3):
        for distance in (1, 2, 3, 8):
            product = signs * np.roll(signs, distance, axis)
            assert abs(product.mean()) < 5 * product.size**-0.5
    other = np.asarray(dropout.drop(jnp.ones((16, 32, 256)), keys(16, 32, seed=1), 0.5)) != 0
    assert abs((signs * np.where(other, 1.0, -1.0)).mean()) < 5 * signs.size**-0.5


def test_the_gradient_passes_where_the_input_did():
    x = jax.random.normal(jax.random.key(3), (3, 4, 8))
    y, pull = jax.vjp(lambda x: dropout.drop(x, keys(3, 4), 0.4), x)
    np.testing.assert_array_equal(pull(jnp.ones_like(x))[0] != 0, y != 0)
    np.testing.assert_allclose(pull(x)[0], y)


@pytest.mark.parametrize(
    ("given", "rate"), [(None, 0.5), (keys(2, 3), 0.0)], ids=["no keys", "rate 0"]
)
def test_without_keys_or_rate_dropout_is_the_identity(given, rate):
    x = jnp.ones((2, 3, 4))
    assert dropout.drop(x, given, rate) is x


def test_keys_of_places_are_distinct_and_none_stays_none():
    assert dropout.fold_keys(None, 3) is None
    folded = [dropout.fold_keys(keys(4, 2), place) for place in range(8)]
    data = [np.stack(key, axis=-1).reshape(-1, 2) for key in folded]
    assert len(np.unique(np.concatenate(data), axis=0)) == 8 * len(folded)
