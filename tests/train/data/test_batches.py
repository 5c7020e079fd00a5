"""Laws of the order: which rows a step sees, for any number of processes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.batches import Batches
from train.data.triplets import Triplet, read_triplets

pytestmark = pytest.mark.unit


def numbered(n: int) -> list[Triplet]:
    return [Triplet(f"{i}", f"{i} too", None) for i in range(n)]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**31 - 1))
def test_an_epoch_is_a_permutation_of_its_own(n, batch, seed):
    batch = min(n, batch)
    rows = numbered(n)
    batches = Batches(rows, batch=batch, epochs=3.0, seed=seed)
    assert batches.left_out == n - batches.steps_per_epoch * batch < batch
    seen = [
        row
        for step in range(batches.steps_per_epoch, 2 * batches.steps_per_epoch)
        for row in batches[step]
    ]
    assert len(seen) == len(set(seen)) == n - batches.left_out
    assert set(seen) <= set(rows)


def test_epochs_differ_in_order_and_in_the_rows_left_out():
    batches = Batches(numbered(103), batch=10, epochs=5.0, seed=1)
    per_epoch = [
        tuple(row for step in range(10) for row in batches[10 * epoch + step]) for epoch in range(5)
    ]
    assert len(set(per_epoch)) == 5
    assert len({frozenset(order) for order in per_epoch}) > 1


def test_seeds_differ_and_a_seed_repeats_itself():
    def order(seed: int) -> list[list[Triplet]]:
        return list(Batches(numbered(64), batch=16, epochs=2.0, seed=seed))

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(processes):
    rows = numbered(100)
    whole = Batches(rows, batch=16, epochs=2.0, seed=7)
    shares = [
        Batches(rows, batch=16, epochs=2.0, seed=7, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for step in (0, 5, 11, 3):
        assert [row for share in shares for row in share[step]] == whole[step]
        assert {len(share[step]) for share in shares} == {16 // processes}


def test_a_process_reads_only_its_own_rows():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    rows = Counted(numbered(64))
    batches = Batches(rows, batch=32, epochs=1.0, seed=0, process_index=1, process_count=4)
    rows.reads = 0
    assert len(batches[0]) == rows.reads == 8


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(1.0, 43), (3.0, 129), (0.5, 22), (0.001, 1), (7 / 43, 7), (100 / 43, 100)],
)
def test_epochs_end_after_a_whole_step(epochs, steps):
    batches = Batches(numbered(11034), batch=256, epochs=epochs, seed=42)
    assert (len(batches), batches.steps_per_epoch, batches.left_out) == (steps, 43, 26)
    with pytest.raises(IndexError, match=f"step {steps} is outside the run's {steps} steps"):
        batches[steps]
    with pytest.raises(IndexError, match="step -1 is outside"):
        batches[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 11}, "a batch of 11, but only 10 rows; use at most 10, or more rows"),
        ({"batch": 0}, "a batch of 0; it needs at least 1 row"),
        ({"epochs": 0.0}, "0.0 epochs; any finite number above 0"),
        ({"epochs": float("nan")}, "nan epochs"),
        ({"process_count": 3}, "a batch of 4, which 3 processes cannot share evenly"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2; they count from 0"),
        ({"batch": 12, "epochs": -1.0}, "a batch of 12, but only 10 rows.*; -1.0 epochs"),
    ],
)
def test_refuses_batches_that_cannot_be_formed(changes, message):
    with pytest.raises(ValueError, match=f"No batches can be formed: .*{message}"):
        Batches(numbered(10), **({"batch": 4, "epochs": 1.0, "seed": 0} | changes))


def test_three_epochs_of_the_real_triplets(data):
    rows = read_triplets(data / "nli" / "nli_triplets.csv").triplets
    batches = Batches(rows, batch=256, epochs=3.0, seed=42)
    assert (len(batches), batches.left_out) == (129, 26)
    assert sum(len(batch) for batch in batches) == 129 * 256
