"""A record on a model: bounds checked against its depth, edits and steps as numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from prompteol_jax.errors import UserError
from prompteol_jax.methods.edits import Edit, TokenCopy, placeholder_state
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.record import Method
from prompteol_jax.methods.steps import (
    CollectOutputs,
    LastTokenSlot,
    Steps,
    SubtractHeads,
    block_range,
    weights,
)


def check_depth(method: Method, L: int) -> None:
    """Refuse blocks that a model of L blocks does not have.

    Raises: UserError naming all of them.
    """
    depth = blocks_run(method, L)
    found = []
    if method.layer is not None and not 1 <= depth <= L:
        found.append(f"layer {method.layer} of {L}")
    if method.copy is not None and method.copy.exit > depth:
        found.append(f"copy.exit {method.copy.exit} of the {depth} blocks that run")
    if method.subtract is not None and not 0 <= subtract_block(method, L) < depth:
        found.append(f"subtract.block {method.subtract.block} of the {depth} blocks that run")
    for name in ("collect", "slot"):
        part = getattr(method, name)
        if part is not None:
            first, end = block_range(part.first, part.end, L)
            if not 0 <= first < end <= (L if name == "collect" else depth):
                found.append(f"{name} {part.first} to {part.end}, blocks {first} to {end}")
    if found:
        raise UserError(
            f"method {method.name} does not fit a model of {L} layers: {'; '.join(found)}. Its "
            "numbers are those of the model it was published for; copy the record with others, or "
            "search them with `python -m eval.search`"
        )


def layer_to_load(method: Method, L: int) -> int | None:
    """Return the last `hidden_states` entry that a method needs; None for the whole model.

    Raises: UserError as `check_depth`.
    """
    check_depth(method, L)
    return _layer(method, L)


def _layer(method: Method, L: int) -> int | None:
    if method.collect is None:
        return method.layer
    end = block_range(method.collect.first, method.collect.end, L)[1]
    return None if end == L else end


def choose(
    method: str | Path | Method | None,
    template: object,
    pooling: object,
    layer: int | None,
) -> Method | None:
    """Return the method that is asked for, at the layer that is asked for; None without one.

    Raises: UserError where a template or a pooling is given as well, which the record decides.
    """
    if method is None:
        return None
    found = find_method(method)
    taken = [("template", template is not None), ("pooling", pooling != "last")]
    given = [name for name, is_given in taken if is_given]
    if given:
        raise UserError(
            f"the method {found.name} decides {' and '.join(given)}; leave out {', '.join(given)}, "
            "or copy the record and change it"
        )
    if layer is None:
        return found
    if found.collect is not None:
        raise UserError(f"the method {found.name} collects attention outputs: leave out the layer")
    return dataclasses.replace(found, layer=layer)


def depth_on(method: Method, L: int, loaded: int | None) -> int | None:
    """Return the blocks that a loaded model must be cut to for a method; None for none to cut.

    Args:
        loaded: last `hidden_states` entry of the loaded model; None for the whole model.
    Raises: UserError where the method needs more than was loaded, or blocks that do not exist.
    """
    layer = layer_to_load(method, L)
    wanted = blocks_run(method, L)
    have = L if loaded is None else loaded
    if wanted > have or (wanted == L and layer is None and loaded is not None):
        raise UserError(
            f"the method {method.name} reads layer {wanted} of {L}, and the model was loaded up to "
            f"layer {have}; load it with layer={layer}"
        )
    return wanted if wanted < have else None


def every_block(steps: Steps, depth: int) -> Steps:
    """Return the same steps, which collect the output of every block of the loaded model."""
    if steps.collect is None:
        return steps
    return dataclasses.replace(steps, collect=CollectOutputs(np.ones(depth, np.float32)))


def edits_of(method: Method, D: int) -> tuple[Edit, ...]:
    """Return the edits between blocks.

    Args:
        D: width of the residual stream.
    """
    copy = method.copy
    if copy is None:
        return ()
    initial_D = jnp.asarray(placeholder_state(copy.seed, D))
    return (TokenCopy(np.int32(copy.start), np.int32(copy.exit), initial_D),)


def steps_of(method: Method, L: int, depth: int) -> Steps:
    """Return the steps inside attention.

    Args:
        L: blocks of the model; depth: blocks that run.
    """
    subtract, collect, slot = method.subtract, method.collect, method.slot
    weight_L, on_L = None, None
    if collect is not None:
        first, end = block_range(collect.first, collect.end, L)
        weight_L = CollectOutputs(weights(first, end, depth, collect.reduce))
    if slot is not None:
        first, end = block_range(slot.first, slot.end, L)
        on_L = LastTokenSlot(weights(first, end, depth, "sum") > 0)
    heads = subtract and SubtractHeads(
        subtract.kind, np.int32(subtract_block(method, L)), np.float32(subtract.scale)
    )
    return Steps(heads, weight_L, on_L)


def subtract_block(method: Method, L: int) -> int:
    """Return the block in which a method subtracts heads, in a model of L blocks."""
    assert method.subtract is not None
    return block_range(method.subtract.block, None, L)[0]


def blocks_run(method: Method, L: int) -> int:
    """Return the blocks that a method runs in a model of L blocks."""
    layer = _layer(method, L)
    return L if layer is None else layer + L + 1 if layer < 0 else layer
