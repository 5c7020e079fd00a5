"""STS tasks: sentence pairs with gold similarities, in one subset or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from prompteol_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs with gold similarities; `dropped` counts pairs left out for want of gold."""

    name: str
    texts_a: Sequence[str]
    texts_b: Sequence[str]
    gold: Float64[np.ndarray, " n"]
    dropped: int = 0

    def __post_init__(self):
        lengths = len(self.texts_a), len(self.texts_b), len(self.gold)
        if len(set(lengths)) != 1:
            raise UserError(
                f"{self.name}: {lengths[0]} first sentences, {lengths[1]} second sentences and "
                f"{lengths[2]} gold scores; give one of each a pair"
            )

    def __len__(self) -> int:
        return len(self.gold)


@dataclass(frozen=True)
class Task:
    """A task with its subsets; STSBenchmark and SICKRelatedness have one subset each."""

    name: str
    subsets: tuple[Pairs, ...]

    def __len__(self) -> int:
        return sum(map(len, self.subsets))

    @property
    def gold(self) -> Float64[np.ndarray, " n"]:
        """Gold similarities of all subsets, joined."""
        return np.concatenate([pairs.gold for pairs in self.subsets])
