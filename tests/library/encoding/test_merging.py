"""The buckets that share a batch are those of the cheapest division."""

import pytest

from prompteol_jax.encoding.merging import sharing

pytestmark = pytest.mark.unit

LENGTHS = (16, 20, 32, 64)
ROWS = (32, 24, 16, 4)


class FourBuckets:
    """Four buckets, of which the first three have the same bits."""

    def sizes(self, bucket):
        return [n for n in (2, 4, 8, 16, ROWS[bucket]) if n <= ROWS[bucket]]

    def holders(self, bucket):
        return [bucket] if bucket == 3 else list(range(bucket, 3))

    def cost(self, bucket, rows):
        return 50.0 + rows * LENGTHS[bucket]


@pytest.mark.parametrize(
    ("first", "waiting", "expected"),
    [
        (0, {0: 1}, ([0], 2)),
        (0, {1: 1, 0: 1}, ([0, 1], 2)),  # one fixed cost for both
        (1, {0: 1, 1: 1}, ([0, 1], 2)),
        (0, {0: 16, 2: 1}, ([0], 16)),  # padding would cost more
        (2, {0: 16, 2: 1}, ([2], 2)),
        (0, {0: 2, 1: 1, 2: 1}, ([0, 1, 2], 4)),
        (0, {0: 30, 1: 1, 2: 1}, ([0], 32)),
        (1, {0: 30, 1: 1, 2: 1}, ([1, 2], 2)),
        (2, {2: 1, 3: 1}, ([2], 2)),  # other bits
        (3, {2: 1, 3: 1}, ([3], 2)),
        (0, {0: 32, 1: 24}, ([0], 32)),  # each full
        (0, {0: 18}, ([0], 16)),  # two of them; 32 rows would cost more
        (0, {0: 75}, ([0], 32)),
    ],
)
def test_the_division_that_costs_least_is_chosen(first, waiting, expected):
    assert sharing(first, waiting, FourBuckets()) == expected
