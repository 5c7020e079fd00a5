"""Laws of ladders: a sentence alone decides its shape, and the cheapest ladder is the cheapest."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_jax.encoding import buckets as ladders
from prompteol_jax.encoding.buckets import LENGTHS, Costs, Ladder


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("longest", [40, 512, 2048, 4096, 131072])
def test_a_ladder_ends_at_the_longest_prompt_and_cuts_rows_to_the_mesh(longest, multiple):
    ladder = Ladder.fixed(longest, 4096, multiple)
    assert ladder.lengths[-1] == longest
    assert set(LENGTHS) >= set(ladder.lengths[:-1]) or longest > 2 * LENGTHS[-1]
    # Beyond the shortest rungs, no sentence is padded to more than about twice its length.
    assert all(b <= 2 * a for a, b in itertools.pairwise(ladder.lengths))
    assert list(ladder.lengths) == sorted(set(ladder.lengths))
    assert all(rows % multiple == 0 and rows > 0 for rows in ladder.rows)
    wide = [t for t, rows in zip(ladder.lengths, ladder.rows, strict=True) if rows > multiple]
    assert all(t * r <= 4096 for t, r in zip(ladder.lengths, ladder.rows, strict=True) if t in wide)


@pytest.mark.parametrize(
    ("length", "shared", "rung"),
    [
        *[(1, True, 8), (8, True, 8), (9, True, 12), (48, True, 48), (49, True, 100)],
        *[(1, False, 100), (64, False, 100), (100, False, 100)],
    ],
)
def test_a_sentence_goes_to_the_shortest_rung_that_holds_it(length, shared, rung):
    ladder = Ladder((8, 12, 48, 100), (8, 8, 4, 2))
    assert ladder.lengths[ladder.rung(length, shared)] == rung


@pytest.mark.parametrize("longest", [13, 60, 512, 2048])
def test_no_model_of_2048_positions_needs_more_than_16_shapes(longest):
    for ladder in (
        Ladder.fixed(longest, 512, 1),
        ladders.cheapest(ladders.expected(6, longest), longest, Costs(0.0001, 1.0), 1),
    ):
        shapes = {(ladder.rung(n, s), s) for n in range(1, longest + 1) for s in (True, False)}
        assert len(shapes) <= 16
        assert all(ladder.lengths[ladder.rung(n)] >= n for n in range(1, longest + 1))


def paid(counts, ladder, costs):
    """What a ladder costs for so many sentences of each length, by the model of `cheapest`."""
    by_rung = dict.fromkeys(range(len(ladder.lengths)), 0)
    for length, n in counts.items():
        by_rung[ladder.rung(length)] += n
    return sum(
        n * ladder.lengths[rung] * costs.token
        + math.sqrt(2 * max(n, 1) * ladder.lengths[rung] * costs.slab * costs.token)
        for rung, n in by_rung.items()
    )


@given(
    st.dictionaries(st.integers(1, 12), st.integers(1, 200), min_size=1, max_size=6),
    st.integers(0, 50),
)
@settings(max_examples=40)
def test_no_other_ladder_is_cheaper_than_the_cheapest(counts, slab):
    costs, longest = Costs(float(slab), 1.0), 12
    best = paid(counts, ladders.cheapest(counts, longest, costs, 1), costs)
    tops = sorted({*counts, longest} - {longest})
    for size in range(len(tops) + 1):
        for some in itertools.combinations(tops, size):
            other = Ladder((*some, longest), (1,) * (size + 1))
            assert best <= paid(counts, other, costs) * (1 + 1e-9)


def test_rare_rungs_have_small_slabs_and_full_slabs_leave_no_row_empty():
    ladder = ladders.cheapest({10: 1000, 200: 3}, 500, Costs(40.0, 1.0), 1)
    assert ladder.lengths[0] == 10
    common, rare = ladder.rows[0], ladder.rows[ladder.rung(200)]
    assert common * 10 > rare * 200
    assert -(-1000 // common) * common - 1000 < 0.02 * 1000


def test_costs_are_the_line_through_two_slabs_and_never_negative():
    assert Costs.fit((100, 1000), (20.0, 110.0)) == Costs(10.0, 0.1)
    for seconds in ((5.0, 110.0), (200.0, 110.0)):
        costs = Costs.fit((100, 1000), seconds)
        assert costs.slab >= 0
        assert costs.token > 0


def test_expected_sentences_lie_between_the_suffix_and_the_longest_prompt():
    counts = ladders.expected(6, 512)
    assert (min(counts), max(counts)) == (7, 512)
    assert sum(counts.values()) == pytest.approx(2000)
    assert ladders.expected(600, 512) == {512: pytest.approx(2000)}
