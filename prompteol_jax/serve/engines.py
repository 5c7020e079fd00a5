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

    def sizes(self, bucket: Bucket) -> list[int]:
        """Return the numbers of rows of a bucket's batches, ascending."""
        return self._all[bucket[0]].sizes(bucket[1:])

    def holders(self, bucket: Bucket) -> list[Bucket]:
        """Return the buckets whose batches leave the bits of a prompt."""
        number, own = bucket[0], bucket[1:]
        return [(number, *other) for other in self._all[number].holders(own)]

    def cost(self, bucket: Bucket, rows: int) -> float:
        """Return what a batch of so many rows costs, in tokens."""
        return self._all[bucket[0]].cost(bucket[1:], rows)

    def launch(self, bucket: Bucket, items: Sequence[tuple[int, Item]]) -> tuple[int, Any]:
        """Start computing prompts in a batch of a bucket."""
        return bucket[0], self._all[bucket[0]].launch(bucket[1:], [own for _, own in items])

    def fetch(self, launched: tuple[int, Any]) -> Any:
        """Wait for a batch and return the vectors of its prompts."""
        number, result = launched
        return self._all[number].fetch(result)
