"""What a method costs, needs and gives up.

The cost is tokens times blocks that are computed for a text, against PromptEOL's: an estimate
without a tokenizer. Words and punctuation marks count as tokens, a shared prefix costs nothing, and
attention's scores are left out, which are small for sentences. All blocks cost alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from prompteol_jax.methods.edits import Edit
from prompteol_jax.methods.on_model import blocks_run, check_depth, steps_of, subtract_block
from prompteol_jax.methods.pooling import Pooling, find_pooling
from prompteol_jax.methods.record import FITTED, PLACEHOLDER, Method
from prompteol_jax.methods.steps import Steps
from prompteol_jax.ops.context import LONG
from prompteol_jax.text.template import PROMPTEOL, SLOT, Template

LAYERS: Final = 32  # of the models that most methods were published for
TEXT: Final = 15  # tokens of a sentence of the STS tasks, about
_TOKEN: Final = re.compile(rf"{re.escape(PLACEHOLDER)}|\w+|[^\w\s]")


def cost(method: Method, L: int = LAYERS, text: int = TEXT) -> float:
    """Return the cost of a text over that of PromptEOL at the last layer.

    Args:
        L: layers of the model; text: tokens of the text. A variant is as long as the text.
    Raises: UserError where the method does not fit so many layers.
    """
    check_depth(method, L)
    depth = blocks_run(method, L)
    steps = steps_of(method, L, depth)
    whole = find_pooling(method.pooling).tokens == "all" or steps.reads_all
    total = sum(_tokens(view.template, text, whole=whole) * depth for view in method.prompts)
    if method.subtract is not None and method.subtract.template is not None:
        own = _tokens(method.subtract.template, text, whole=whole)
        total += len(method.prompts) * own * (subtract_block(method, L) + 1)
    return total / (_tokens(PROMPTEOL, text, whole=False) * L)


def needs(method: Method) -> list[str]:
    """Return what a method needs besides a model and texts."""
    found = []
    if any(view.transform and view.transform.kind == "expansion" for view in method.prompts):
        found.append("an expansion file")
    if any(stage.kind in FITTED for stage in method.post):
        found.append("fitted numbers (prompteol fit)")
    if any(stage.kind == "embed-filter" for stage in method.post):
        found.append("the LM head")
    return found


def gives_up(method: Method) -> list[str]:
    """Return what a method keeps the encoder from saving, and what it cannot be run with."""
    pooling, steps = find_pooling(method.pooling), steps_of(method, LAYERS, LAYERS)
    found = not_saved(pooling, (), steps)  # a record's edits are of the prompt's own tokens
    if len(method.prompts) > 1:
        found.append(f"{len(method.prompts)} prompts, each with its own cached prefix")
    if pooling.tokens != "last":
        found.append("no packed rows")
    if steps.slot is not None:
        found.append(f"no prompts beyond {LONG} tokens")
    return found


def not_saved(pooling: Pooling, edits: Sequence[Edit], steps: Steps) -> list[str]:
    """Return what a pooling, edits and steps keep the encoder from saving, and why."""
    found = []
    if pooling.tokens != "last":
        found.append(f"pooling {pooling.name}: last block for every token")
    reasons = [f"pooling {pooling.name}"] if pooling.tokens == "all" else []
    reasons += [type(edit).__name__ for edit in edits if edit.tokens == "all"]
    reasons += steps.names_of_all
    if reasons:
        found.append(f"{', '.join(reasons)}: prefix computed for every text")
    return found


def _tokens(template: Template, text: int, *, whole: bool) -> int:
    """Return the tokens of a text in a prompt, without the shared prefix unless it is computed."""
    if template.pieces:
        first = template.pieces.index(SLOT)
        own = template.pieces[0 if whole else first :]
        return sum(text if piece == SLOT else _count(piece) for piece in own)
    head = template.head if whole else "".join(template.head.rpartition(PLACEHOLDER)[1:])
    marked = whole or PLACEHOLDER in template.head
    return (_count(head) if marked else 0) + text + _count(template.suffix)


def _count(text: str) -> int:
    return len(_TOKEN.findall(text))
