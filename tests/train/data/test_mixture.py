"""Laws of mixed sources: each step is of one source, sources keep their shares and their orders."""

import numpy as np
import pytest

from train.data.batches import Batches
from train.data.mixture import MixedBatches, Mixture, turns
from train.data.triplets import Triplet, row_class

pytestmark = pytest.mark.unit


def rows(name, n):
    return [Triplet(f"{name} {i}", "b", None) for i in range(n)]


SOURCES = {"a": rows("a", 40), "b": rows("b", 25)}


def mixed(weights=(), steps=None, epochs=1.0, **how):
    mixture = Mixture(SOURCES, weights)
    return MixedBatches(mixture, batch=4, epochs=epochs, steps=steps, seed=7, **how)


def test_every_batch_is_of_one_source_in_that_sources_own_order():
    batches = mixed(steps=60)
    alone = {
        name: Batches(part, batch=4, epochs=20.0, seed=7 + n)
        for n, (name, part) in enumerate(SOURCES.items())
    }
    taken = dict.fromkeys(SOURCES, 0)
    for step in range(len(batches)):
        name = batches.source(step)
        assert batches[step] == batches.whole(step) == alone[name][taken[name]]
        assert [batches.rows[n] for n in batches.numbers(step)] == batches[step]
        assert batches.origin(step) == ("row", alone[name].numbers(taken[name]))
        taken[name] += 1
    assert taken == {"a": 38, "b": 22}  # as their 10 and 6 whole batches


def test_one_epoch_has_the_whole_batches_of_all_sources():
    batches = mixed()
    assert len(batches) == 10 + 6
    seen = [row for step in range(16) for row in batches[step]]
    assert len(seen) == len(set(seen)) == 64


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 5), (1, 2, 3, 4)])
def test_no_source_is_ever_a_whole_step_off_its_share(weights):
    source, turn = turns(weights, 200)
    taken = np.cumsum(source[:, None] == np.arange(len(weights)), axis=0)
    share = np.array(weights) / sum(weights) * np.arange(1, 201)[:, None]
    assert np.abs(taken - share).max() <= 1
    assert [*turn] == [taken[step, s] - 1 for step, s in enumerate(source)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_batches(processes):
    whole = mixed(weights=(1, 2))
    parts = [
        mixed(weights=(1, 2), process_index=n, process_count=processes) for n in range(processes)
    ]
    for step in range(len(whole)):
        assert [row for part in parts for row in part[step]] == whole[step]


def test_refuses_sources_that_do_not_fit_together():
    graded = [row_class(("sent0", "sent1", "score"))("a", "b", 1.0)]
    with pytest.raises(ValueError, match="same columns: a has sent0, sent1; b has .*, score"):
        Mixture({"a": rows("a", 1), "b": graded})
    with pytest.raises(ValueError, match=r"--weights gives 3 numbers for 2 sources \(a, b\)"):
        Mixture(SOURCES, (1, 2, 3))
    small = Mixture({"a": rows("a", 40), "small": rows("b", 3)})
    with pytest.raises(ValueError, match="small: .*a batch of 4, but only 3 rows"):
        MixedBatches(small, batch=4, epochs=1.0, steps=None, seed=0)
