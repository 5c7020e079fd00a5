"""The scan over layers, and what its backward pass keeps of the forward pass.

none  keeps whatever differentiation asks for
dots  keeps the input of every layer, and what is marked by `keep`: results of products that the
      gradient needs, and the moments of norms
full  keeps the input of every layer

Under `dots` and `full` the backward pass runs every layer once more, with what was kept in place of
what made it, and differentiates that. What is kept lies in stacks of all layers; a kernel is told
where (`kept_in`) and reads its layer's part there. Left to itself, jax would copy it out first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from prompteol_jax.stacks import Part

Remat = Literal["none", "dots", "full"]
# layer(x, xs, beside) -> (x, noted), as a scan's body; `beside` is the same for every layer.
Layer = Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]]


class _Recording:
    """A layer of the forward pass: notes what is to be kept."""

    def __init__(self, dots: bool):
        self.dots = dots
        self.kept: list[jax.Array] = []

    def keep(self, x: jax.Array, replace: Callable) -> jax.Array:
        if self.dots:
            self.kept.append(x)
        return x


class _Replay:
    """A layer of the backward pass: puts what was kept in its place again, in the same order."""

    def __init__(self, stacks: list[jax.Array] | None, layer: jax.Array):
        self.parts = None if stacks is None else iter([Part(stack, layer) for stack in stacks])
        self.places: dict[int, tuple[jax.Array, Part]] = {}  # by identity of the array

    def keep(self, x: jax.Array, replace: Callable) -> jax.Array:
        if self.parts is None:
            return x
        part = next(self.parts)
        return self.place(replace(x, part.value()), part)

    def place(self, x: jax.Array, part: Part) -> jax.Array:
        """Note where an array lies."""
        self.places[id(x)] = (x, part)
        return x


_PASS: Final[ContextVar[_Recording | _Replay | None]] = ContextVar("pass", default=None)


@contextmanager
def _passing(kind: _Recording | _Replay | None) -> Iterator[None]:
    token = _PASS.set(kind)
    try:
        yield
    finally:
        _PASS.reset(token)


def keep(x: jax.Array) -> jax.Array:
    """Mark what `dots` keeps for the backward pass, where that needs it.

    In the layer's own trace only: a function that is traced by itself cannot hand it out.
    """
    current = _PASS.get()
    return x if current is None else current.keep(x, _instead)


def relu(x: jax.Array) -> jax.Array:
    """The positive part, of which `dots` keeps the result."""
    current = _PASS.get()
    y = _relu(x, None)
    return y if current is None else current.keep(y, lambda _, kept: _relu(x, kept))


def kept_in(x: jax.Array) -> Part | None:
    """Where an array lies, if it was just put in its place; None for all others."""
    current = _PASS.get()
    if not isinstance(current, _Replay) or id(x) not in current.places:
        return None
    return current.places[id(x)][1]


def differentiates() -> bool:
    """Say whether what is traced is a layer whose gradient is wanted, under `dots` or `full`.

    The forward pass of a gradient of our own is no differentiated function to jax.
    """
    return _PASS.get() is not None


@jax.custom_vjp
def _instead(x: jax.Array, kept: jax.Array) -> jax.Array:
    """What was kept, in place of x, which gets its gradient."""
    return kept


_instead.defvjp(lambda x, kept: (kept, None), lambda _, dy: (dy, None))


@jax.custom_vjp
def _relu(x: jax.Array, kept: jax.Array | None) -> jax.Array:
    """The positive part; its gradient needs the result alone, so the argument is not kept."""
    return jnp.maximum(x, 0) if kept is None else kept


def _relu_forward(x: jax.Array, kept: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    y = _relu(x, kept)
    return y, y


_relu.defvjp(_relu_forward, lambda y, dy: (jnp.where(y > 0, dy, 0), None))


def scan_layers(
    layer: Layer, x: jax.Array, xs: Any, beside: Any, remat: Remat
) -> tuple[jax.Array, Any]:
    """Run layers one after another: the last one's x, and what they noted, stacked.

    Args:
        xs: of every layer, stacked; beside: of all of them, not differentiated.
    """
    if remat == "none":
        return jax.lax.scan(lambda x, own: layer(x, own, beside), x, xs)
    stacks, tree = jax.tree.flatten(xs)

    def run(x: jax.Array, own: list[jax.Array], beside: Any) -> tuple[jax.Array, Any]:
        return layer(x, tree.unflatten(own), beside)

    return _scan(run, remat == "dots", x, stacks, beside)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(
    layer: Layer, dots: bool, x: jax.Array, stacks: list[jax.Array], beside: Any
) -> tuple[jax.Array, Any]:
    return jax.lax.scan(lambda x, own: layer(x, own, beside), x, stacks)


def _scan_forward(layer: Layer, dots: bool, x: Any, stacks: list, beside: Any) -> tuple:
    """Also what the backward pass needs: what trains, what does not, beside, inputs, kept."""
    varied = {n: stack.value for n, stack in enumerate(stacks) if stack.perturbed}
    fixed = {n: stack.value for n, stack in enumerate(stacks) if not stack.perturbed}
    if any(leaf.perturbed for leaf in jax.tree.leaves(beside)):
        raise ValueError("what is beside the layers of a scan gets no gradient")
    beside = jax.tree.map(lambda leaf: leaf.value, beside)

    def run(x: jax.Array, own: list[jax.Array]) -> tuple[jax.Array, tuple]:
        recording = _Recording(dots)
        with _passing(recording):
            after, noted = layer(x, own, beside)
        return after, (noted, x, recording.kept)

    x, (noted, inputs, kept) = jax.lax.scan(run, x.value, [stack.value for stack in stacks])
    return (x, noted), (varied, fixed, beside, inputs, kept)


def _scan_backward(layer: Layer, dots: bool, kept_all: tuple, gradients: tuple) -> tuple:
    varied, fixed, beside, inputs, kept = kept_all
    dx, dnoted = gradients
    wanted = {n: d for n, d in enumerate(jax.tree.leaves(dnoted)) if not isinstance(d, SymbolicZero)}

    def back(dx: jax.Array, at: jax.Array) -> tuple[jax.Array, dict]:
        def own(stacks: dict) -> dict:
            return {n: Part(stack, at).value() for n, stack in stacks.items()}

        def run(x: jax.Array, trained: dict) -> tuple[jax.Array, dict]:
            replay = _Replay(kept if dots else None, at)
            parts = own(fixed) | trained
            with _passing(replay):
                x = replay.place(x, Part(inputs, at))
                x, noted = layer(x, [parts[n] for n in sorted(parts)], beside)
            noted = jax.tree.leaves(noted)
            return x, {n: noted[n] for n in wanted}

        _, pull = jax.vjp(run, Part(inputs, at).value(), own(varied))
        return pull((dx, own(wanted)))

    layers = jnp.arange(len(inputs))
    dx, dvaried = jax.lax.scan(back, dx, layers, reverse=True)
    dstacks = [dvaried.get(n) for n in range(len(varied) + len(fixed))]
    return dx, dstacks, None


_scan.defvjp(_scan_forward, _scan_backward, symbolic_zeros=True)
