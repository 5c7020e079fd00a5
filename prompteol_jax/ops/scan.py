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

from prompteol_jax.errors import UserError
from prompteol_jax.ops.layer_slice import Part

Remat = Literal["none", "dots", "full"]
# layer(x, xs, beside) -> (x, noted), as a scan's body; `beside` is the same for every layer.
Layer = Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]]
# restore(x, kept) -> what was kept; gradients are those of x.
Restore = Callable[[jax.Array, jax.Array], jax.Array]


class _Pass:
    """A layer that is traced for the gradient of a scan; this one keeps nothing."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[jax.Array, Part]] = {}  # by identity of the array

    def keep(self, x: jax.Array, restore: Restore, *, aside: bool = False) -> jax.Array:
        """What to go on with in the place of x; `aside`: it is only to be read where it is kept."""
        return x

    def place(self, x: jax.Array, part: Part) -> jax.Array:
        """Note where an array lies."""
        self.places[id(x)] = (x, part)
        return x


class _List(_Pass):
    """Lists what is to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[jax.Array] = []

    def keep(self, x: jax.Array, restore: Restore, *, aside: bool = False) -> jax.Array:
        self.kept.append(x)
        return x


class _Record(_Pass):
    """Writes what is to be kept into stacks."""

    def __init__(self, stacks: list[jax.Array], layer: jax.Array):
        super().__init__()
        self.layer, self.rest, self.written = layer, iter(stacks), []

    def keep(self, x: jax.Array, restore: Restore, *, aside: bool = False) -> jax.Array:
        stack = jax.lax.dynamic_update_index_in_dim(next(self.rest), x, self.layer, 0)
        if aside:  # else XLA would go on with x itself
            stack = jax.lax.optimization_barrier(stack)
            part = Part(stack, self.layer)
            x = self.place(part.value(), part)
        self.written.append(stack)
        return x


class _Replay(_Pass):
    """Puts what was kept in its place again, in the same order."""

    def __init__(self, stacks: list[jax.Array], layer: jax.Array):
        super().__init__()
        self.layer, self.rest = layer, iter(stacks)

    def keep(self, x: jax.Array, restore: Restore, *, aside: bool = False) -> jax.Array:
        part = Part(next(self.rest), self.layer)
        return self.place(restore(x, part.value()), part)


_PASS: Final[ContextVar[_Pass | None]] = ContextVar("pass", default=None)


@contextmanager
def _passing(kind: _Pass) -> Iterator[None]:
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
    """The positive part, of which `dots` keeps the result.

    It is the widest there is in a layer: written once, it leaves room in a TPU core's memory.
    """
    current = _PASS.get()
    y = _relu(x, None)
    return y if current is None else current.keep(y, lambda _, kept: _relu(x, kept), aside=True)


def kept_in(x: jax.Array) -> Part | None:
    """Where an array lies, if it was just put in its place; None for all others."""
    current = _PASS.get()
    if current is None or id(x) not in current.places:
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
        raise UserError("what is beside the layers of a scan gets no gradient")
    beside = jax.tree.map(lambda leaf: leaf.value, beside)

    stacks = [stack.value for stack in stacks]
    depth = len(stacks[0])
    kept = _kept(layer, x.value, [stack[0] for stack in stacks], beside) if dots else []

    def run(carry: tuple, own: list[jax.Array]) -> tuple[tuple, tuple]:
        x, kept, at = carry  # XLA spares itself zeros in empty stacks where it sees that at counts
        current = _Record(kept, at) if dots else _Pass()
        own = [
            current.place(part, Part(stack, at)) for part, stack in zip(own, stacks, strict=True)
        ]
        with _passing(current):
            after, noted = layer(x, own, beside)
        return (after, current.written if dots else [], at + 1), (noted, x)

    empty = [jnp.empty((depth, *a.shape), a.dtype) for a in kept]
    begin = x.value, empty, jnp.int32(0)
    (after, kept, _), (noted, inputs) = jax.lax.scan(run, begin, stacks)
    return (after, noted), (varied, fixed, beside, inputs, kept)


def _kept(layer: Layer, *operands: Any) -> list[jax.ShapeDtypeStruct]:
    """What a layer keeps."""

    def run(*operands: Any) -> list[jax.Array]:
        with _passing(listing := _List()):
            layer(*operands)
        return listing.kept

    return jax.eval_shape(run, *operands)


def _scan_backward(layer: Layer, dots: bool, kept_all: tuple, gradients: tuple) -> tuple:
    varied, fixed, beside, inputs, kept = kept_all
    dx, dnoted = gradients
    wanted = {
        n: d for n, d in enumerate(jax.tree.leaves(dnoted)) if not isinstance(d, SymbolicZero)
    }

    def back(dx: jax.Array, at: jax.Array) -> tuple[jax.Array, dict]:
        def own(stacks: dict) -> dict:
            return {n: Part(stack, at).value() for n, stack in stacks.items()}

        def run(x: jax.Array, trained: dict) -> tuple[jax.Array, dict]:
            current = _Replay(kept, at) if dots else _Pass()
            parts = own(fixed) | trained
            for n, part in parts.items():
                current.place(part, Part((fixed | varied)[n], at))
            with _passing(current):
                x = current.place(x, before)
                x, noted = layer(x, [parts[n] for n in sorted(parts)], beside)
            noted = jax.tree.leaves(noted)
            return x, {n: noted[n] for n in wanted}

        before = Part(inputs, at)
        _, pull = jax.vjp(run, before.value(), own(varied))
        return pull((dx, own(wanted)))

    layers = jnp.arange(len(inputs))
    dx, dvaried = jax.lax.scan(back, dx, layers, reverse=True)
    dstacks = [dvaried.get(n) for n in range(len(varied) + len(fixed))]
    return dx, dstacks, None


_scan.defvjp(_scan_forward, _scan_backward, symbolic_zeros=True)
