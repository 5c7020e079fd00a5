"""Strategies: how texts become batches.

    fixed    every sentence in the same bucket always: same texts, mesh and machine, same bits
    fitted   buckets for the lengths of the first texts that are encoded
    packed   short sentences share rows

A strategy never changes by itself. `fixed` is the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, get_args

from jax.sharding import Mesh

from prompteol_jax.errors import UserError
from prompteol_jax.methods.edits import Edit
from prompteol_jax.methods.pooling import Pooling
from prompteol_jax.models import Config, build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import select

Plan = Literal["fixed", "fitted", "packed"]


def check_plan(
    plan: str, batch_tokens: int | None, pooling: Pooling, edits: Sequence[Edit] = ()
) -> None:
    """Refuse a plan that does not exist or does not fit what is encoded.

    Raises: UserError naming everything that is wrong.
    """
    problems = []
    if plan not in get_args(Plan):
        near = difflib.get_close_matches(plan, get_args(Plan), n=1)
        problems.append(
            f"plan {plan!r} is not one of {', '.join(get_args(Plan))}"
            + (f"; nearest: {near[0]}" if near else "")
        )
    if batch_tokens is not None and batch_tokens < 1:
        problems.append(f"batch_tokens {batch_tokens} must be 1 or more")
    if batch_tokens is not None and plan == "fitted":
        problems.append(f"plan {plan} chooses batch_tokens itself; leave one of them out")
    if plan == "packed" and (pooling.tokens, pooling.layers) != ("last", "last"):
        problems.append(f"plan packed gives last tokens only, not pooling {pooling.name}")
    single = [type(edit).__name__ for edit in edits if not edit.packs]
    if plan == "packed" and single:
        names = ", ".join(single)
        problems.append(f"plan packed takes no edits that see one prompt a row: {names}")
    if problems:
        raise UserError("; ".join(problems))


def default_batch_tokens(mesh: Mesh, decoder: Decoder) -> int:
    """Return the tokens of a batch that keep the devices of a mesh busy."""
    return select.batch_tokens(mesh, decoder.width, quantized=decoder.quantized)


def vector_width(
    config: Config, decoder: Decoder, pooling: Pooling, *, collects: bool = False
) -> int:
    """Return the number of features of a pooling's vectors.

    Args:
        decoder: one that may end at an inner layer.
        collects: the vectors are made of attention outputs.
    """
    is_inner = collects or isinstance(decoder.final_norm, build.Identity)
    final = config.D if is_inner else config.width
    return pooling.width(inner=config.D, final=final, depth=decoder.depth)
