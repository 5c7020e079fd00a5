"""Laws of the policy: when a run is scored, saved and stopped, as a table."""

import pytest

from train.preemption import Signals
from train.save_policy import Actions, SavePolicy

pytestmark = pytest.mark.unit

POLICY = SavePolicy(steps=10, evaluate_every=4, save_every=3)
QUIET, TERM, LATE = Signals(), Signals(stop=True), Signals(minutes_are_over=True)
BUSY = Signals(writing=True)


@pytest.mark.parametrize(
    ("step", "signals", "due", "evaluate", "save", "still_due", "stop"),
    [
        (1, QUIET, False, False, False, False, False),
        (4, QUIET, False, True, False, False, False),
        (3, QUIET, False, False, True, False, False),
        # A save waits while the one before it is written, and is made up for.
        (3, BUSY, False, False, False, True, False),
        (4, BUSY, True, True, False, True, False),
        (5, QUIET, True, False, True, False, False),
        # Minutes between saves.
        (5, LATE, False, False, True, False, False),
        (5, LATE._replace(writing=True), False, False, False, True, False),
        # SIGTERM saves at any step, also while a save is written.
        (5, TERM, False, False, True, False, True),
        (5, TERM._replace(writing=True), False, False, True, False, True),
        # The last step is scored and saved in any case, and is no stop.
        (10, QUIET, False, True, True, False, False),
        (10, BUSY, False, True, True, False, False),
        (10, TERM, False, True, True, False, False),
    ],
)
def test_what_is_done_after_a_step(step, signals, due, evaluate, save, still_due, stop):
    expected = Actions(evaluate, save, still_due, stop)
    assert POLICY.decide(step, signals, due=due) == expected


@pytest.mark.parametrize(
    ("patience", "worse", "over"), [(None, 99, False), (2, 1, False), (2, 2, True), (2, 3, True)]
)
def test_patience_ends_after_so_many_worse_scores(patience, worse, over):
    assert POLICY._replace(patience=patience).is_out_of_patience(worse) == over
