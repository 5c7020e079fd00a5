"""Laws of windows: fields in and out are in test_families, states in test_parity."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.models.context import Layers, Rows
from prompteol_jax.models.windows import every_layer, layer_types, widest
from prompteol_jax.ops.context import visible

WINDOWS = (4, None, 8)


def rows(T):
    return Rows(jnp.zeros((1, T), jnp.int32), jnp.full((1, 1), T - 1))


@pytest.mark.parametrize(
    ("T", "offset", "mask_C", "matters"),
    [
        (4, 0, None, False),
        (5, 0, None, True),
        (2, 2, None, False),
        (2, 3, None, True),
        (2, jnp.int32(2), None, True),  # not known when a program is traced
        (2, jnp.int32(1), jnp.ones(2, bool), False),
        (2, jnp.int32(1), jnp.ones(3, bool), True),
    ],
)
def test_windows_are_dropped_where_no_text_is_longer_than_the_smallest(T, offset, mask_C, matters):
    layers = Layers(3, 16, 8, 32, window_L=WINDOWS)
    context = layers.context(rows(T), offset, mask_C)
    assert (context.position_BT is not None) is matters
    assert (context.of_layer(layers.info(0)).window is not None) is matters


def test_layers_without_any_window_need_no_positions():
    layers = Layers(3, 16, 8, 32, window_L=(None, None, None))
    assert layers.context(rows(2000), 0).position_BT is None


def test_fields_of_a_config():
    assert (every_layer(7, 2), every_layer(None, 2)) == ((7, 7), None)
    assert (widest(WINDOWS), widest((None,)), widest(None)) == (8, None, None)
    assert layer_types((4, None), 2) == ["sliding_attention", "full_attention"]
    assert layer_types(None, 1) == ["full_attention"]


def test_in_both_directions_a_token_sees_its_own_text_within_the_window_and_no_padding():
    layers = Layers(1, 16, 8, 32, window_L=(2,), causal=False)
    packed = Rows(
        jnp.zeros((1, 7), jnp.int32), jnp.array([[3, 5, 0]]), jnp.array([[0, 0, 0, 0, 4, 4, 4]])
    )
    context = layers.context(packed, 0).of_layer(layers.info(0))
    seen = np.asarray(context.row_mask(7)[0, :6]).astype(int)
    wanted = [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 0],
    ]
    np.testing.assert_array_equal(seen, wanted)
    last = context.of_queries(packed.last_BS[:, :2])
    np.testing.assert_array_equal(last.row_mask(7)[0], [wanted[3], wanted[5]])
    assert layers.short_tokens == 0
    alone = Rows(jnp.zeros((1, 3), jnp.int32), jnp.array([[1]]))
    end_BT = Layers(1, 16, 8, 32, causal=False).context(alone, 0).end_BT
    np.testing.assert_array_equal(visible(3, None, None, 0, end_BT)[0, 0], [1, 1, 0])
