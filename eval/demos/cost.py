"""What a search costs in matrix products, and what it would cost to run each candidate alone.

Products are counted in the traced programs, at the shapes that were run, padding included. Alone,
every candidate's prompts are whole: its demonstrations are computed again for every sentence, by
the same program otherwise, the last block for last tokens only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from eval.demos.encode import SharedEncoder
from prompteol_jax.encoding.batching import encode, encode_after, prefill_padded
from prompteol_jax.encoding.buckets import Ladder
from prompteol_jax.encoding.pipeline import default_batch_tokens
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops.einsum import matrix_flops
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import Template


def of_search(encoder: SharedEncoder) -> int:
    """Returns the floating-point operations of the products that a shared encoder has run."""
    decoder = encoder.embedder.decoder
    total, caches = 0, {}
    for (A, C), times in encoder.prefills.items():
        arguments = decoder, _ints(A, C), _ints(A)
        total += times * products(prefill_padded, *arguments)
        caches[A, C] = jax.eval_shape(prefill_padded, *arguments)
    for (A, C, B, T), times in encoder.runs.items():
        rows = Rows(_ints(B, T), _ints(B, 1))
        total += times * products(encode_after, decoder, rows, caches[A, C])
    return total


def of_each_alone(
    encoder: SharedEncoder, templates: Sequence[Template], texts: Sequence[str]
) -> int:
    """Returns the operations of encoding whole prompts, one template after the other."""
    pretrained = encoder.embedder.pretrained
    mesh = pretrained.mesh
    tokens = default_batch_tokens(mesh, encoder.embedder.decoder)
    ladder = Ladder.fixed(pretrained.config.P, tokens, mesh.shape["data"])
    slabs: Counter[int] = Counter()
    forms: dict[tuple[str, str], Int[np.ndarray, " n"]] = {}
    for template in templates:
        form = (template.prefix, template.suffix)
        if form not in forms:
            forms[form] = _tokens(pretrained, Template("bare", *form), texts)
        bare = _tokens(pretrained, Template("bare", *form), ("",))
        shown = _tokens(pretrained, template, ("",)) - bare
        lengths = np.minimum(forms[form] + shown, ladder.lengths[-1])
        rungs = Counter(ladder.rung(int(length)) for length in lengths)
        for rung, sentences in rungs.items():
            slabs[rung] += -(-sentences // ladder.rows[rung])
    total = 0
    for rung, times in slabs.items():
        B, T = ladder.rows[rung], ladder.lengths[rung]
        total += times * products(encode, encoder.embedder.decoder, Rows(_ints(B, T), _ints(B, 1)))
    return total


def products(function: Callable, *arguments: Any) -> int:
    """Counts two operations for every multiply-add of the matrix products in a function."""
    return matrix_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _tokens(pretrained: Any, template: Template, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Ids of each whole prompt."""
    prompt = Prompt(template, pretrained.tokenizer, max_tokens=pretrained.config.P)
    found = prompt(texts)
    shared = np.where(found.shared, len(prompt.prefix_C), 0)
    return shared + np.array([len(ids) for ids in found.ids])


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32)
