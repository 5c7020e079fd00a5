"""Laws of moves: a pattern and its reverse undo each other, and expansion counts layers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_jax.weights import mapping
from prompteol_jax.weights.mapping import TensorMap

pytestmark = pytest.mark.unit

SIZES = {"A": 2, "B": 3, "C": 1, "D": 4}


@st.composite
def patterns(draw: Any) -> str:
    """Two sides over the same letters, each in any order with any of them joined."""
    letters = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True, max_size=4))

    def side() -> str:
        order = draw(st.permutations(letters))
        groups: list[list[str]] = []
        for letter in order:
            if groups and draw(st.booleans()):
                groups[-1].append(letter)
            else:
                groups.append([letter])
        return " ".join(g[0] if len(g) == 1 else f"({' '.join(g)})" for g in groups)

    return f"{side()} -> {side()}"


@settings(deadline=None)
@given(patterns())
def test_round_trip_of_any_pattern(dims: str) -> None:
    shape = mapping.lengths(mapping.parse(dims)[0], SIZES)
    array = np.arange(int(np.prod(shape, dtype=int)), dtype=np.int32).reshape(shape)
    there = mapping.arrange(array, dims, SIZES)
    assert there.shape == mapping.lengths(mapping.parse(dims)[1], SIZES)
    np.testing.assert_array_equal(mapping.arrange(there, mapping.reverse(dims), SIZES), array)


def test_arranged_axes_are_those_named() -> None:
    array = np.arange(24).reshape(6, 4)
    expected = np.einsum("ABD->DAB", array.reshape(2, 3, 4))
    np.testing.assert_array_equal(mapping.arrange(array, "(A B) D -> D A B", SIZES), expected)


def test_splitting_and_reordering_is_a_view() -> None:
    array = np.arange(24).reshape(6, 4)
    for source in (array, np.asfortranarray(array)):
        assert np.shares_memory(mapping.arrange(source, "(A B) D -> D A B", SIZES), source)


@pytest.mark.parametrize(
    ("dims", "rows", "columns"),
    [
        ("(A B)|B|C D -> A B D", slice(0, 6), slice(0, 4)),
        ("A|(B)|C D -> B D", slice(2, 5), slice(0, 4)),
        ("A|B|(C) D -> C D", slice(5, 6), slice(0, 4)),
        ("B|(B) D|(D) -> D B", slice(3, 6), slice(4, 8)),
    ],
)
def test_a_leaf_may_be_a_part_of_a_tensor(dims: str, rows: slice, columns: slice) -> None:
    shape = mapping.file_shape(dims, SIZES)
    array = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    part = mapping.arrange(array, dims, SIZES)
    assert part.shape == mapping.lengths(mapping.parse(dims)[1], SIZES)
    back = mapping.arrange(part, mapping.reverse(dims), SIZES)
    np.testing.assert_array_equal(back, array[rows, columns])
    assert mapping.own_part(dims, SIZES) == (rows, columns)
    assert np.shares_memory(part, array)


@pytest.mark.parametrize("dims", ["A B -> A", "A A -> A A", "A -> B", "A", "A -> A -> A"])
def test_refuses_a_pattern_that_loses_or_repeats_axes(dims: str) -> None:
    with pytest.raises(ValueError, match="does not name the same axes once on each side"):
        mapping.parse(dims)


TABLE = (
    TensorMap("top", "stem.x", "D -> D"),
    TensorMap("l.{l}.w", "block.a.w", "D -> D"),
)


@pytest.mark.parametrize(
    ("layers", "stacked", "last"), [(1, (), "l.0.w"), (3, ("l.0.w", "l.1.w"), "l.2.w")]
)
def test_layers_but_the_last_are_stacked(layers: int, stacked: tuple[str, ...], last: str) -> None:
    assert mapping.expand(TABLE, layers) == {
        "stem.x": (("top",), False, "D -> D"),
        "blocks.a.w": (stacked, True, "D -> D"),
        "last.a.w": ((last,), False, "D -> D"),
    }
