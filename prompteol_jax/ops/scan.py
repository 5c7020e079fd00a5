"""The scan over layers, and what its backward pass saves of the forward pass.

none  saves all that differentiation asks for
dots  saves the input of every layer, and what the layer gives to its tape: results of matrix
      products that the gradient needs, and the moments of norms
full  saves the input of every layer

Under `dots` and `full` the backward pass re-runs each layer, substituting saved values for the ops
that produced them, and differentiates the re-run. Saved values are in stacks of all layers; a
kernel that gets a `Saved` reads its layer's slice there. Left alone, XLA would copy it out first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from prompteol_jax.errors import UserError
from prompteol_jax.ops.layer_slice import LayerSlice

Remat = Literal["none", "dots", "full"]
# restore(x, saved) -> the saved value; its gradient is that of x.
Restore = Callable[[jax.Array, jax.Array], jax.Array]


class Saved(NamedTuple):
    """A value of one layer and, where it is in a stack of all layers, its slice there."""

    value: Any
    slice: LayerSlice | None = None


def as_saved(x: Any) -> Saved:
    """Return an array as a value that is in no stack; a `Saved` as it is."""
    return x if isinstance(x, Saved) else Saved(x)


@jax.custom_vjp
def _replace(x: jax.Array, saved: jax.Array) -> jax.Array:
    """Return the saved value in place of x, which gets its gradient."""
    return saved


_replace.defvjp(lambda x, saved: (saved, None), lambda _, dy: (dy, None))


class Tape:
    """What a layer saves for its backward pass; this one saves nothing.

    Attributes:
        differentiates: the layer is traced for the gradient of a scan, under `dots` or `full`. JAX
            does not see our own forward pass as being differentiated.
    """

    def __init__(self, *, differentiates: bool = False):
        self.differentiates = differentiates

    def save(
        self, x: jax.Array, restore: Restore = _replace, *, read_from_stack: bool = False
    ) -> Saved:
        """Save x and return what to continue with.

        Args:
            restore: puts the saved value in place of x when the layer is re-run.
            read_from_stack: later ops of the forward pass, too, read x from the stack.
        """
        return Saved(x)


NONE: Final = Tape()


class _Listing(Tape):
    """Lists what a layer saves."""

    def __init__(self) -> None:
        super().__init__(differentiates=True)
        self.saved: list[jax.Array] = []

    def save(
        self, x: jax.Array, restore: Restore = _replace, *, read_from_stack: bool = False
    ) -> Saved:
        self.saved.append(x)
        return Saved(x)


class _Writing(Tape):
    """Writes what a layer saves into stacks, one value each, in order."""

    def __init__(self, stacks: list[jax.Array], layer: jax.Array):
        super().__init__(differentiates=True)
        self.layer, self.rest, self.written = layer, iter(stacks), []

    def save(
        self, x: jax.Array, restore: Restore = _replace, *, read_from_stack: bool = False
    ) -> Saved:
        stack = jax.lax.dynamic_update_index_in_dim(next(self.rest), x, self.layer, 0)
        saved = Saved(x)
        if read_from_stack:  # without the barrier XLA would go on with x itself
            stack = jax.lax.optimization_barrier(stack)
            part = LayerSlice(stack, self.layer)
            saved = Saved(part.value(), part)
        self.written.append(stack)
        return saved


class _Reading(Tape):
    """Puts saved values in place of what made them, in the same order."""

    def __init__(self, stacks: list[jax.Array], layer: jax.Array):
        super().__init__(differentiates=True)
        self.layer, self.rest = layer, iter(stacks)

    def save(
        self, x: jax.Array, restore: Restore = _replace, *, read_from_stack: bool = False
    ) -> Saved:
        part = LayerSlice(next(self.rest), self.layer)
        return Saved(restore(x, part.value()), part)


def relu(x: jax.Array, tape: Tape = NONE) -> Saved:
    """Return the positive part, of which `dots` saves the result.

    It is the widest array of a layer: written once, it leaves room in a TPU core's memory.
    """
    y = _relu(x, None)
    return tape.save(y, lambda _, saved: _relu(x, saved), read_from_stack=True)


@jax.custom_vjp
def _relu(x: jax.Array, saved: jax.Array | None) -> jax.Array:
    """The positive part; its gradient needs the result alone, so the argument is not saved."""
    return jnp.maximum(x, 0) if saved is None else saved


def _relu_forward(x: jax.Array, saved: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    y = _relu(x, saved)
    return y, y


_relu.defvjp(_relu_forward, lambda y, dy: (jnp.where(y > 0, dy, 0), None))

# layer(x, xs, consts, tape) -> (x, ys), as a scan's body. `x` and every leaf of `xs` are `Saved`;
# `consts` are the same for every layer.
Layer = Callable[[Saved, Any, Any, Tape], tuple[jax.Array, Any]]


def scan_layers(
    layer: Layer, x: jax.Array, xs: Any, consts: Any, remat: Remat
) -> tuple[jax.Array, Any]:
    """Run layers one after another; return the last one's x, and their ys, stacked.

    Args:
        xs: arrays of every layer, stacked.
        consts: arrays of all layers; they get no gradient.
    """
    stacks, tree = jax.tree.flatten(xs)

    def run(x: Saved, own: list[Saved], consts: Any, tape: Tape) -> tuple[jax.Array, Any]:
        return layer(x, tree.unflatten(own), consts, tape)

    if remat == "none":
        return _plain(run, x, stacks, consts)
    return _scan(run, remat == "dots", x, stacks, consts)


def _plain(
    layer: Layer, x: jax.Array, stacks: list[jax.Array], consts: Any
) -> tuple[jax.Array, Any]:
    def run(carry: tuple, own: list[jax.Array]) -> tuple[tuple, Any]:
        x, at = carry
        x, ys = layer(Saved(x), _parts(own, stacks, at), consts, NONE)
        return (x, at + 1), ys

    (x, _), ys = jax.lax.scan(run, (x, jnp.int32(0)), stacks)
    return x, ys


def _parts(own: list[jax.Array], stacks: list[jax.Array], at: jax.Array) -> list[Saved]:
    """Return the arrays of a layer, each with its slice of the stack."""
    pairs = zip(own, stacks, strict=True)
    return [Saved(part, LayerSlice(stack, at)) for part, stack in pairs]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(
    layer: Layer, dots: bool, x: jax.Array, stacks: list[jax.Array], consts: Any
) -> tuple[jax.Array, Any]:
    return _plain(layer, x, stacks, consts)


def _scan_forward(layer: Layer, dots: bool, x: Any, stacks: list, consts: Any) -> tuple:
    """Also return residuals: what trains, what is frozen, consts, inputs, saved values."""
    trained = {n: stack.value for n, stack in enumerate(stacks) if stack.perturbed}
    frozen = {n: stack.value for n, stack in enumerate(stacks) if not stack.perturbed}
    if any(leaf.perturbed for leaf in jax.tree.leaves(consts)):
        raise UserError("consts of scan_layers are not differentiable")
    consts = jax.tree.map(lambda leaf: leaf.value, consts)

    stacks = [stack.value for stack in stacks]
    depth = len(stacks[0])
    shapes = _saved(layer, x.value, [stack[0] for stack in stacks], consts) if dots else []

    def run(carry: tuple, own: list[jax.Array]) -> tuple[tuple, tuple]:
        # The carried counter `at` lets XLA skip zero-filling the empty stacks.
        x, saved, at = carry
        tape = _Writing(saved, at) if dots else Tape(differentiates=True)
        after, ys = layer(Saved(x), _parts(own, stacks, at), consts, tape)
        written = tape.written if isinstance(tape, _Writing) else []
        return (after, written, at + 1), (ys, x)

    empty = [jnp.empty((depth, *a.shape), a.dtype) for a in shapes]
    begin = x.value, empty, jnp.int32(0)
    (after, saved, _), (ys, inputs) = jax.lax.scan(run, begin, stacks)
    return (after, ys), (trained, frozen, consts, inputs, saved)


def _saved(layer: Layer, x: jax.Array, own: list, consts: Any) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of what a layer saves."""

    def run(x: jax.Array, own: list, consts: Any) -> list[jax.Array]:
        layer(Saved(x), list(map(Saved, own)), consts, listing := _Listing())
        return listing.saved

    return jax.eval_shape(run, x, own, consts)


def _scan_backward(layer: Layer, dots: bool, residuals: tuple, gradients: tuple) -> tuple:
    trained, frozen, consts, inputs, saved = residuals
    dx, dys = gradients
    wanted = {n: d for n, d in enumerate(jax.tree.leaves(dys)) if not isinstance(d, SymbolicZero)}

    def back(dx: jax.Array, at: jax.Array) -> tuple[jax.Array, dict]:
        def own(stacks: dict) -> dict:
            return {n: LayerSlice(stack, at).value() for n, stack in stacks.items()}

        def run(x: jax.Array, own_trained: dict) -> tuple[jax.Array, dict]:
            tape = _Reading(saved, at) if dots else Tape(differentiates=True)
            stacks, parts = frozen | trained, own(frozen) | own_trained
            xs = [Saved(parts[n], LayerSlice(stacks[n], at)) for n in sorted(parts)]
            x, ys = layer(Saved(x, before), xs, consts, tape)
            ys = jax.tree.leaves(ys)
            return x, {n: ys[n] for n in wanted}

        before = LayerSlice(inputs, at)
        _, pull = jax.vjp(run, before.value(), own(trained))
        return pull((dx, own(wanted)))

    layers = jnp.arange(len(inputs))
    dx, dtrained = jax.lax.scan(back, dx, layers, reverse=True)
    dstacks = [dtrained.get(n) for n in range(len(trained) + len(frozen))]
    return dx, dstacks, None


_scan.defvjp(_scan_forward, _scan_backward, symbolic_zeros=True)
