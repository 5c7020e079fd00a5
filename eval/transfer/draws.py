"""The random draws of SentEval's probes, bit for bit: folds, held-out rows, weights, shuffles.

SentEval seeds numpy and torch with the same number before each probe. Both generators are the
same Mersenne Twister, seeded the same way, so numpy draws torch's initial weights here too.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from jaxtyping import Float32, Int32, Int64

MANTISSA_BITS: Final = 24  # torch keeps this many bits of a draw for a float32


def stratified_folds(labels_M: Int64[np.ndarray, " M"], folds: int, seed: int) -> list[np.ndarray]:
    """Return the test rows of each fold, as scikit-learn's shuffled StratifiedKFold cuts them.

    A class's rows are spread over the folds as they would be if the sorted labels were dealt out
    like cards; which of its rows goes where is then shuffled. Classes count in order of appearance.
    """
    state = np.random.RandomState(seed)
    found, first, class_M = np.unique(labels_M, return_index=True, return_inverse=True)
    class_M = np.argsort(np.argsort(first))[class_M]
    dealt = np.sort(class_M)
    fold_M = np.empty(len(labels_M), np.int64)
    for number in range(len(found)):
        shares = [np.count_nonzero(dealt[start::folds] == number) for start in range(folds)]
        chosen = np.repeat(np.arange(folds), shares)
        state.shuffle(chosen)
        fold_M[class_M == number] = chosen
    return [np.flatnonzero(fold_M == fold) for fold in range(folds)]


def held_out(rows: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those held out to stop early, drawn first of all."""
    order = np.random.RandomState(seed).permutation(rows)
    count = int(share * rows)
    return order[count:], order[:count]


def shuffles(
    rows: int, epochs: int, seed: int, drawn_rows: int = 0
) -> Int32[np.ndarray, "epochs rows"]:
    """Return the rows' order in each epoch; `held_out` permuted `drawn_rows` rows before."""
    state = np.random.RandomState(seed)
    if drawn_rows:
        state.permutation(drawn_rows)
    return np.stack([state.permutation(rows) for _ in range(epochs)]).astype(np.int32)


def linear_weights(
    width: int, classes: int, seed: int
) -> tuple[Float32[np.ndarray, "Y D"], Float32[np.ndarray, " Y"]]:
    """Return the weights and biases that torch's Linear starts from after `manual_seed(seed)`."""
    state = np.random.RandomState(seed)

    def uniform(bound: float, count: int) -> np.ndarray:
        bits = state.randint(0, 2**32, count, dtype=np.uint32) & (2**MANTISSA_BITS - 1)
        low, high = np.float32(-bound), np.float32(bound)
        return (bits / 2**MANTISSA_BITS * (high - low) + low).astype(np.float32)

    kaiming = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(width))
    w_YD = uniform(kaiming, classes * width).reshape(classes, width)
    return w_YD, uniform(1 / math.sqrt(width), classes)
