"""Several prompts of one model, each under a name, as one device of the batcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prompteol_jax.serve.engine import Engine, Item, Prompts

Bucket = tuple[int, int, int, bool]  # number of the engine, and its own bucket


class Engines:
    """Engines by name; several names may have the same one.

    Args:
        named: engines by the name that a request gives; the first is the default.
    """

    def __init__(self, named: Mapping[str, Engine]):
        self.named = dict(named)
        self._all = list(dict.fromkeys(self.named.values()))

    @property
    def shapes(self) -> int:
        """Shapes of batches that are compiled."""
        return sum(len(engine.shapes) for engine in self._all)

    def items(self, engine: Engine, prompts: Prompts) -> list[tuple[int, Item]]:
        """Return the prompts of one engine in the form that the batcher takes."""
        number = self._all.index(engine)
        return [(number, item) for item in prompts.items]

    def label(self, bucket: Bucket) -> str:
        """Return the name of a bucket, for metrics; the prompts of a method have one name."""
        number, _, length, shared = bucket
        engine = self._all[number]
        name = next(name for name, one in self.named.items() if one is engine)
        text = f"{engine.buckets.lengths[length]}{'' if shared else ' whole'}"
        return text if number == 0 else f"{name} {text}"

    def bucket(self, item: tuple[int, Item]) -> Bucket:
        """Return the bucket of a prompt; prompts of two engines never share one."""
        number, own = item
        return (number, *self._all[number].bucket(own))

    def rows(self, bucket: Bucket) -> int:
        """Return the rows of a bucket's full batches."""
        return self._all[bucket[0]].rows(bucket[1:])

    def launch(self, bucket: Bucket, items: Sequence[tuple[int, Item]]) -> tuple[int, Any]:
        """Start computing prompts of one bucket."""
        return bucket[0], self._all[bucket[0]].launch(bucket[1:], [own for _, own in items])

    def fetch(self, launched: tuple[int, Any]) -> Any:
        """Wait for a batch and return the vectors of its prompts."""
        number, result = launched
        return self._all[number].fetch(result)
