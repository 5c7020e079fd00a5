"""What a run does after each step: score its weights, save a checkpoint, stop."""

from __future__ import annotations

from typing import NamedTuple

from train.preemption import Signals


class Actions(NamedTuple):
    """What to do after a step.

    Attributes:
        evaluate: score the weights on the development pairs.
        save: save a checkpoint; due: a save is still due after this step.
        stop: end the run before its last step.
    """

    evaluate: bool
    save: bool
    due: bool
    stop: bool


class SavePolicy(NamedTuple):
    """When a run is scored, saved and ended; a pure function of what it is given.

    Attributes:
        steps: number of steps of the run.
        evaluate_every, save_every: number of steps between scores, and between checkpoints.
        patience: number of scores in a row below the best that end the run; None for no limit.
    """

    steps: int
    evaluate_every: int
    save_every: int
    patience: int | None = None

    def decide(self, step: int, signals: Signals, *, due: bool) -> Actions:
        """Return what to do after a step, counted from 1.

        Where a save is still being written, the next one waits for a later step; the last step and
        a stop wait for nothing.

        Args:
            due: a save was due after an earlier step.
        """
        last = step == self.steps
        due = due or signals.minutes_are_over or last or step % self.save_every == 0
        save = last or signals.stop or (due and not signals.writing)
        return Actions(
            evaluate=last or step % self.evaluate_every == 0,
            save=save,
            due=due and not save,
            stop=signals.stop and not last,
        )

    def is_out_of_patience(self, worse: int) -> bool:
        """Say whether so many scores in a row below the best end the run."""
        return self.patience is not None and worse >= self.patience
