"""The matrix products of a search, and those of running each candidate alone.

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

from prompteol_jax.encoding.prefixes import PrefixEncoder
from prompteol_jax.encoding.runners import encode, encode_after, prefill_padded
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops.einsum import matrix_flops
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import Template


def of_search(encoder: PrefixEncoder) -> int:
    """Return the floating-point operations of the products that a prefix encoder has run."""
    decoder = encoder.pipeline.decoder
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
    encoder: PrefixEncoder, templates: Sequence[Template], texts: Sequence[str]
) -> int:
    """Return the operations of encoding whole prompts, one template after the other."""
    pipeline = encoder.pipeline
    buckets = pipeline.buckets(pipeline.tokens)
    assert buckets is not None  # only the plan `fitted` waits for texts, and the search is `fixed`
    batches: Counter[int] = Counter()
    forms: dict[tuple[str, str], Int[np.ndarray, " n"]] = {}
    for template in templates:
        form = (template.prefix, template.suffix)
        bare = encoder.prompt(Template("bare", *form))
        if form not in forms:
            forms[form] = _tokens(bare, texts)
        shown = _tokens(encoder.prompt(template), ("",)) - _tokens(bare, ("",))
        lengths = np.minimum(forms[form] + shown, buckets.lengths[-1])
        found = Counter(buckets.find(int(length)) for length in lengths)
        for bucket, sentences in found.items():
            batches[bucket] += -(-sentences // buckets.rows[bucket])
    total = 0
    for bucket, times in batches.items():
        B, T = buckets.rows[bucket], buckets.lengths[bucket]
        total += times * products(encode, pipeline.decoder, Rows(_ints(B, T), _ints(B, 1)))
    return total


def products(function: Callable, *arguments: Any) -> int:
    """Count two operations for every multiply-add of the matrix products in a function."""
    return matrix_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _tokens(prompt: Prompt, texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Return the number of ids of each whole prompt."""
    found = prompt(texts)
    shared = np.where(found.shared, len(prompt.prefix_C), 0)
    return shared + np.array([len(ids) for ids in found.ids])


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.int32)
