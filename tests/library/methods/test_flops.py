"""What methods cost in matrix products, by the traced programs, against PromptEOL's.

Programs are those that an accelerator runs, in the shape of Llama-2-7B without weights, for the
batches into which the pipeline sorts real sentences.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import oracle
import pytest

from prompteol_jax.encoding.runners import Reading, auxiliary_heads, encode_as, prefill
from prompteol_jax.encoding.views import make_views
from prompteol_jax.mesh import make_mesh
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.pooling import find_pooling
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.models.published import PUBLISHED
from prompteol_jax.ops.einsum import matrix_flops
from prompteol_jax.pretrained.load import Pretrained
from prompteol_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

SENTENCES = 200
SHAPE = (64, 25)  # rows and own tokens of a usual batch


@pytest.fixture(scope="module")
def pipelines(data):
    """The pipelines of a record's prompts on Llama-2-7B without weights; all layers are run."""
    config, mesh = PUBLISHED["llama-2-7b"], make_mesh((1, 1))
    decoder = build.abstract_decoder(config, mesh, dtype="bfloat16")
    tokenizer = load_tokenizer(data / "weights" / "llama-tokenizer")
    pretrained = Pretrained("llama-2-7b", None, config, tokenizer, decoder, mesh)

    def of(name):
        method = dataclasses.replace(find_method(name), layer=None)
        pooling = find_pooling(method.pooling)
        views = make_views(
            pretrained,
            method,
            partial(np.zeros, (1, 1)),
            pooling=pooling,
            edits=(),
            bounds={"max_tokens": 512},
        )
        return views.pipelines

    return of


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, np.int32)


def counted(program: Any, *arguments: Any, trips: int = 1) -> int:
    """Products of a program; a loop without a known length makes `trips`, a branch the longest."""
    total = 0
    for equation in jax.make_jaxpr(program.__wrapped__)(*arguments).jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "while":
            total += trips * matrix_flops(params["body_jaxpr"].jaxpr)
        elif name == "cond":
            total += max(matrix_flops(branch.jaxpr) for branch in params["branches"])
        else:
            total += matrix_flops(SimpleNamespace(eqns=[equation]))
    return total


def of_batch(pipeline, B, T, *, shared=True):
    """Products of one batch of B rows of T ids after the prefix, auxiliary prompts included."""
    decoder, rows = pipeline.decoder, Rows(ints(B, T), ints(B, 1))
    cache = jax.eval_shape(prefill, decoder, ints(len(pipeline.prompt.prefix_C)))
    cache = cache if shared else None
    reading = Reading(pipeline.pooling, pipeline.edits, None, pipeline.steps)
    total, subtract = 0, pipeline.steps.subtract
    with jax.set_mesh(pipeline.mesh):
        if pipeline.auxiliary is not None:
            other = jax.eval_shape(prefill, decoder, ints(len(pipeline.auxiliary.prefix_C)))
            block = int(subtract.block)
            arguments = decoder, rows, other, np.int32(block)
            total += counted(auxiliary_heads, *arguments, trips=block)
            heads = jax.eval_shape(auxiliary_heads, *arguments)
            changed = dataclasses.replace(subtract, auxiliary_BSNH=heads)
            steps = dataclasses.replace(pipeline.steps, subtract=changed)
            reading = dataclasses.replace(reading, steps=steps)
        return total + counted(encode_as, decoder, rows, cache, reading)


def of_texts(pipeline, texts, *, shared=True):
    """Products of texts, each in its bucket, without empty rows; the prefix is computed once."""
    C = len(pipeline.prompt.prefix_C)
    lengths = [len(ids) + (0 if shared else C) for ids in pipeline.prompt(texts).ids]
    buckets = pipeline.buckets(4096)
    total = counted(prefill, pipeline.decoder, ints(C)) if shared else 0
    for bucket, sentences in Counter(map(buckets.find, lengths)).items():
        B = 8
        batch = of_batch(pipeline, B, buckets.lengths[bucket], shared=shared)
        total += sentences * batch / B
    return total


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("tp/eol", 1.02),
        ("cp-ns/eol", 1.25),
        ("cp-nr/eol", 1.25),
        ("attention-sum", 1.05),
        ("aligned-values", 1.05),
    ],
)
def test_an_edit_costs_little_in_a_batch_of_one_shape(name, most, pipelines):
    (eol,), (ours,) = pipelines("eol"), pipelines(name)
    ratio = of_batch(ours, *SHAPE) / of_batch(eol, *SHAPE)
    assert 0.9 < ratio <= most


def test_eight_prompts_with_cached_prefixes_cost_less_than_three_of_them_alone(pipelines, data):
    texts = oracle.sentences(data, SENTENCES)
    views = pipelines("metaeol")
    ours = sum(of_texts(pipeline, texts) for pipeline in views)
    alone = sum(of_texts(pipeline, texts, shared=False) for pipeline in views)
    assert len(views) == 8
    assert 8 * ours / alone <= 2.6
