"""Transfer accuracies of vectors: SentEval's three ways to choose a probe and to test it.

Accuracies are percents, rounded where SentEval rounds them. A probe's first weights, its shuffles
and the folds are SentEval's, so the seed means what it means there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64

from eval.sts import scores
from eval.transfer import draws, probe
from eval.transfer.probe import Split
from eval.transfer.probe_step import Protocol
from eval.transfer.tasks import Examples, Transfer
from prompteol_jax.progress import progress_bar

SENTEVAL: Final = Protocol()
FAST: Final = Protocol(folds=5, optimizer="rmsprop", batch=32, tenacity=3, epoch_size=2)
SEED: Final = 1111  # SentEval's; the folds of tasks without a test set always use it

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Labeled:
    """The features of a set and its classes."""

    x_MD: Float32[np.ndarray, "M D"]
    y_M: Int64[np.ndarray, " M"]


@dataclass(frozen=True)
class TaskScore:
    """Result of a task: accuracies in percent, the weight decays chosen, and each prediction."""

    development: float
    test: float
    decays: list[float]
    folds: list[float]
    predicted_M: Int64[np.ndarray, " M"]


def evaluate_transfer(
    encoder: scores.Encoder,
    tasks: Sequence[Transfer],
    *,
    protocol: Protocol = SENTEVAL,
    seed: int = SEED,
    clean: bool = True,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Return of an encoder the `scores` and their `average`, `detail`, and all `examples`.

    Raises: NotFinite naming the sentence of a vector that is not finite.
    """
    detail, examples = {}, {}
    for task in tasks:
        sets = features(encoder, task, clean=clean, progress=progress)
        with progress_bar(f"{task.name} probes", count_fits(task, protocol), progress) as advance:
            outcome = probe_task(task.classes, sets, protocol, seed, advance)
        gold_M = sets[-1].y_M
        detail[task.name] = {
            "examples": len(task),
            "class_names": list(task.class_names),
            "development": outcome.development,
            "test": outcome.test,
            "decays": outcome.decays,
            "folds": outcome.folds,
        }
        if len(task.train.columns) == 2:
            detail[task.name]["f1"] = _f1(gold_M, outcome.predicted_M)
        examples[task.name] = {"gold": gold_M, "predicted": outcome.predicted_M}
    accuracies = {name: parts["test"] for name, parts in detail.items()}
    average = round(sum(accuracies.values()) / len(accuracies), 2)
    return {"scores": accuracies, "average": average, "detail": detail, "examples": examples}


def features(
    encoder: scores.Encoder, task: Transfer, *, clean: bool = True, progress: bool | None = None
) -> list[Labeled]:
    """Encode a task's sets: a sentence's vector, or |u - v| and u * v of a pair."""
    columns = [column for part in task.sets for column in part.columns]
    _, vectors, rows = scores.encode_distinct(encoder, columns, clean=clean, progress=progress)
    sides = iter(rows)

    def labeled(part: Examples) -> Labeled:
        u_MD, *pair = [vectors[next(sides)] for _ in part.columns]
        if pair:
            u_MD = np.concatenate([np.abs(u_MD - pair[0]), u_MD * pair[0]], axis=1)
        return Labeled(u_MD, part.labels)

    return [labeled(part) for part in task.sets]


def count_fits(task: Transfer, protocol: Protocol) -> int:
    """Return how many splits a task trains probes on."""
    return {1: protocol.folds**2 + protocol.folds, 2: protocol.folds + 1, 3: 1}[len(task.sets)]


def probe_task(
    classes: int,
    sets: Sequence[Labeled],
    protocol: Protocol,
    seed: int,
    advance: Advance = lambda steps: None,
) -> TaskScore:
    """Train and test the probes of one task, by the sets it has: see `Transfer`."""
    trainer = Trainer(classes, protocol, seed, advance)
    return {1: _nested, 2: _folded, 3: _given}[len(sets)](trainer, *sets)


@dataclass(frozen=True)
class Trainer:
    """Settings that all probes of a task share."""

    classes: int
    protocol: Protocol
    seed: int
    advance: Advance

    def fit(self, data: Labeled, splits: Sequence[Split], decay_XW: np.ndarray) -> probe.Probes:
        """Train the probes of all splits."""
        return probe.fit(
            data.x_MD,
            data.y_M,
            splits,
            decay_XW,
            classes=self.classes,
            protocol=self.protocol,
            seed=self.seed,
            advance=self.advance,
        )

    def search(self, data: Labeled, splits: Sequence[Split]) -> tuple[probe.Probes, np.ndarray]:
        """Train with every weight decay; return the probes and their development accuracies."""
        probes = self.fit(data, splits, np.tile(self.protocol.decays, (len(splits), 1)))
        sizes = np.array([len(split.development) for split in splits])
        return probes, probes.right_XW / sizes[:, None]

    def choose(self, accuracy_XW: np.ndarray) -> tuple[float, float]:
        """Return the first weight decay with the best mean over splits, and that mean."""
        means = [round(100 * np.mean(column), 2) for column in accuracy_XW.T]
        best = int(np.argmax(means))
        return self.protocol.decays[best], float(means[best])

    def held_out(self, rows: np.ndarray) -> Split:
        """Split off the rows that the final probe stops early by."""
        train, development = draws.held_out(len(rows), self.protocol.held_out, self.seed)
        return Split(rows[train], rows[development], len(rows))


def _nested(trainer: Trainer, data: Labeled) -> TaskScore:
    """Choose a weight decay within the rows outside of each fold, and test on the fold."""
    rows, folds = np.arange(len(data.y_M)), trainer.protocol.folds
    tests = draws.stratified_folds(data.y_M, folds, SEED)
    outers = [np.delete(rows, test) for test in tests]
    inner = [split for outer in outers for split in _fold_splits(outer, data.y_M, folds, SEED)]
    _, accuracy_XW = trainer.search(data, inner)
    chosen = [trainer.choose(part) for part in np.split(accuracy_XW, folds)]
    decay_X1 = np.array([[decay] for decay, _ in chosen])
    final = trainer.fit(data, [trainer.held_out(outer) for outer in outers], decay_X1)
    predicted_M = np.empty_like(data.y_M)
    for number, test in enumerate(tests):
        predicted_M[test] = _predict(final, number, 0, data.x_MD[test])
    accuracies = [_accuracy(data.y_M[test], predicted_M[test]) for test in tests]
    return TaskScore(
        round(float(np.mean([mean for _, mean in chosen])), 2),
        round(float(np.mean(accuracies)), 2),
        [decay for decay, _ in chosen],
        accuracies,
        predicted_M,
    )


def _folded(trainer: Trainer, data: Labeled, test: Labeled) -> TaskScore:
    """Choose a weight decay by folds of the training set, train on all of it, and test."""
    rows = np.arange(len(data.y_M))
    splits = _fold_splits(rows, data.y_M, trainer.protocol.folds, trainer.seed)
    _, accuracy_XW = trainer.search(data, splits)
    decay, mean = trainer.choose(accuracy_XW)
    final = trainer.fit(data, [trainer.held_out(rows)], np.array([[decay]]))
    predicted_M = _predict(final, 0, 0, test.x_MD)
    accuracy = _accuracy(test.y_M, predicted_M)
    return TaskScore(mean, accuracy, [decay], [accuracy], predicted_M)


def _given(trainer: Trainer, train: Labeled, development: Labeled, test: Labeled) -> TaskScore:
    """Choose the probe by the development set, and test it.

    SentEval trains the chosen one a second time, from the same draws: the same probe.
    """
    x_MD = np.concatenate([train.x_MD, development.x_MD])
    data = Labeled(x_MD, np.concatenate([train.y_M, development.y_M]))
    rows = np.arange(len(data.y_M))
    split = Split(rows[: len(train.y_M)], rows[len(train.y_M) :])
    probes, accuracy_XW = trainer.search(data, [split])
    decay, mean = trainer.choose(accuracy_XW)
    chosen = trainer.protocol.decays.index(decay)
    predicted_M = _predict(probes, 0, chosen, test.x_MD)
    accuracy = _accuracy(test.y_M, predicted_M)
    return TaskScore(mean, accuracy, [decay], [accuracy], predicted_M)


def _fold_splits(rows: np.ndarray, labels_M: np.ndarray, folds: int, seed: int) -> list[Split]:
    tests = draws.stratified_folds(labels_M[rows], folds, seed)
    return [Split(np.delete(rows, test), rows[test]) for test in tests]


def _predict(probes: probe.Probes, fit: int, decay: int, x_MD: np.ndarray) -> np.ndarray:
    return probe.predict(x_MD, probes.w_XWYD[fit, decay], probes.b_XWY[fit, decay])


def _accuracy(gold_M: np.ndarray, predicted_M: np.ndarray) -> float:
    return round(100 * float(np.mean(gold_M == predicted_M)), 2)


def _f1(gold_M: np.ndarray, predicted_M: np.ndarray) -> float:
    """Compute 100 x F1 of class 1."""
    found = np.count_nonzero(gold_M & predicted_M)
    either = np.count_nonzero(gold_M) + np.count_nonzero(predicted_M)
    return round(200 * found / either, 2) if either else 0.0
