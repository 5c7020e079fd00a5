"""Threads that start batches in turn: what different threads start runs at the same time.

XLA's CPU client runs the programs of one thread in their order. An op that is too small to be
divided, such as a block of a long row's attention, then leaves cores idle, which the ops of another
batch can use. See decisions/071.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TypeVar

import jax
from jax.sharding import Mesh

from prompteol_jax.ops import select

Given = TypeVar("Given")
Result = TypeVar("Result")


class Streams:
    """The threads of one call, as many as the devices of its mesh can use; a context manager."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._pools = [ThreadPoolExecutor(1) for _ in range(select.streams(mesh))]
        self._next = cycle(self._pools)

    def start(self, launch: Callable[[Given], Result], batch: Given) -> Result:
        """Return `launch(batch)`; of several threads the next one calls it, with the mesh set."""
        if len(self._pools) == 1:
            return launch(batch)
        return next(self._next).submit(self._with_mesh, launch, batch).result()

    def _with_mesh(self, launch: Callable[[Given], Result], batch: Given) -> Result:
        with jax.set_mesh(self._mesh):
            return launch(batch)

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown()
