"""Laws of buckets: a sentence alone decides its shape, and the fitted buckets are the cheapest."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_jax.encoding.buckets import LENGTHS, Buckets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("longest", [40, 512, 2048, 4096, 131072])
def test_buckets_end_at_the_longest_prompt_and_cut_rows_to_the_mesh(longest, multiple):
    buckets = Buckets.fixed(longest, 4096, multiple)
    assert buckets.lengths[-1] == longest
    assert set(LENGTHS) >= {n for n in buckets.lengths[:-1] if n <= LENGTHS[-1]}
    # Beyond the shortest buckets, no sentence is padded to more than about twice its length, and no
    # long text by more than a quarter.
    pairs = list(itertools.pairwise(buckets.lengths))
    assert all(b <= (1.25 if a >= LENGTHS[-1] else 2) * a for a, b in pairs)
    assert list(buckets.lengths) == sorted(set(buckets.lengths))
    assert all(rows % multiple == 0 and rows > 0 for rows in buckets.rows)
    wide = [t for t, rows in zip(buckets.lengths, buckets.rows, strict=True) if rows > multiple]
    assert all(
        t * r <= 4096 for t, r in zip(buckets.lengths, buckets.rows, strict=True) if t in wide
    )


@pytest.mark.parametrize(
    ("length", "shared", "bucket"),
    [
        *[(1, True, 8), (8, True, 8), (9, True, 12), (48, True, 48), (49, True, 100)],
        *[(1, False, 100), (64, False, 100), (100, False, 100)],
    ],
)
def test_a_sentence_goes_to_the_shortest_bucket_that_holds_it(length, shared, bucket):
    buckets = Buckets((8, 12, 48, 100), (8, 8, 4, 2))
    assert buckets.lengths[buckets.find(length, shared)] == bucket


def test_short_queries_share_no_bucket_with_documents():
    buckets = Buckets.fixed(4096, 512, 1)
    assert buckets.find(60) not in {buckets.find(n) for n in range(65, 4097)}
    assert buckets.find(64, shared=False) not in {
        buckets.find(n, shared=False) for n in range(65, 4097)
    }


@pytest.mark.parametrize("longest", [13, 60, 512, 2048])
def test_no_model_of_2048_positions_needs_more_than_20_shapes(longest):
    lengths = {n: 1 + 2000 // n for n in range(1, longest + 1)}
    for buckets in (
        Buckets.fixed(longest, 512, 1),
        Buckets.fitted(lengths, longest, 1, 1),
    ):
        shapes = {(buckets.find(n, s), s) for n in range(1, longest + 1) for s in (True, False)}
        assert len(shapes) <= 20
        assert all(buckets.lengths[buckets.find(n)] >= n for n in range(1, longest + 1))


def paid(counts, buckets, overhead):
    """What buckets cost for so many sentences of each length, by the model of `fitted`."""
    held = dict.fromkeys(range(len(buckets.lengths)), 0)
    for length, n in counts.items():
        held[buckets.find(length)] += n
    return sum(
        n * buckets.lengths[bucket] + math.sqrt(2 * max(n, 1) * buckets.lengths[bucket] * overhead)
        for bucket, n in held.items()
    )


@given(
    st.dictionaries(st.integers(1, 12), st.integers(1, 200), min_size=1, max_size=6),
    st.integers(0, 500),
)
@settings(max_examples=40)
def test_no_other_buckets_are_cheaper_than_the_fitted(counts, batch_tokens):
    longest = 12
    best = paid(counts, Buckets.fitted(counts, longest, batch_tokens, 1), batch_tokens / 10)
    tops = sorted({*counts, longest} - {longest})
    for size in range(len(tops) + 1):
        for some in itertools.combinations(tops, size):
            other = Buckets((*some, longest), (1,) * (size + 1))
            assert best <= paid(counts, other, batch_tokens / 10) * (1 + 1e-9)


def test_rare_buckets_have_small_batches_and_full_batches_leave_no_row_empty():
    buckets = Buckets.fitted({10: 1000, 200: 3}, 500, 400, 1)
    assert buckets.lengths[0] == 10
    common, rare = buckets.rows[0], buckets.rows[buckets.find(200)]
    assert common * 10 > rare * 200
    assert -(-1000 // common) * common - 1000 < 0.02 * 1000
