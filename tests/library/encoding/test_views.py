"""Laws of methods on a model: means, plans, meshes and what a method keeps the encoder from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.errors import UserError
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.record import Collect, Copy, ExtraSlot, Method, Subtract
from prompteol_jax.text.template import TEMPLATES

TEXTS = ["A dog runs.", "Two women are playing guitar together", "x", "(a) man, eating bread."]


def on_tiny(name, **fields):
    return dataclasses.replace(find_method(name), **fields)


# Published numbers are for deeper models.
METHODS = {
    "tp": on_tiny("tp/eol", layer=None, copy=Copy(1, 2)),
    "cp": on_tiny(
        "cp-nr/eol",
        layer=None,
        subtract=Subtract(0, "nr", template=find_method("cp-nr/eol").subtract.template),
    ),
    "sum": find_method("attention-sum"),
    "meta": find_method("metaeol"),
    "kv": on_tiny("kv-embedding/context", slot=ExtraSlot(0, 1)),
}


@pytest.mark.slow
def test_several_prompts_are_averaged_raw(embedders):
    tiny = embedders("tiny")
    method = Method("both", tuple(find_method(n).prompts[0] for n in ("eol", "cot")))
    both = tiny.with_method(method).encode(TEXTS)
    each = [tiny.with_template(TEMPLATES[name]).encode(TEXTS) for name in ("eol", "cot")]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=2e-5)


def test_a_record_of_a_template_gives_its_bits(embedders):
    tiny = embedders("tiny")
    np.testing.assert_array_equal(tiny.with_method("eol").encode(TEXTS), tiny.encode(TEXTS))


@pytest.mark.wide
@pytest.mark.fast("tp", "sum")
@pytest.mark.parametrize("name", ["tp", "cp", "sum"])
def test_packed_rows_give_the_vectors_of_fixed_ones(name, embedders):
    tiny = embedders("tiny")
    fixed, packed = (
        Embedder(tiny.pretrained, method=METHODS[name], plan=plan) for plan in ("fixed", "packed")
    )
    expected = fixed.encode(TEXTS)
    np.testing.assert_allclose(packed.encode(TEXTS), expected, atol=2e-5)
    assert np.abs(expected - tiny.encode(TEXTS)).max() > 1e-3
    np.testing.assert_array_equal(fixed.encode(TEXTS[1:2])[0], expected[1])
    assert fixed.plan == tiny.plan  # nothing is given up


def test_a_method_says_what_it_gives_up(embedders):
    tiny = embedders("tiny")
    plans = {name: tiny.with_method(METHODS[name]).plan for name in ("meta", "kv")}
    assert plans["meta"].endswith("; 8 prompts, each with its own cached prefix")
    assert "extra slot: prefix computed for every text" in plans["kv"]


def test_every_layer_of_a_collecting_method_is_every_blocks_output(embedders):
    tiny = embedders("tiny")
    outputs = tiny.with_method("attention-sum").encode_layers(TEXTS)
    assert len(outputs) == tiny.decoder.depth
    whole = tiny.with_method("attention-sum").encode(TEXTS)
    np.testing.assert_allclose(sum(outputs), whole, atol=2e-5)
    first = on_tiny("attention-sum", collect=Collect(0, 1))
    np.testing.assert_allclose(tiny.with_method(first).encode(TEXTS), outputs[0], atol=2e-5)


def test_a_method_of_fewer_blocks_keeps_the_whole_model_for_the_next_one(embedders):
    tiny = embedders("tiny")
    short = tiny.with_method(on_tiny("eol", layer=1))
    assert short.decoder.depth == 1 < tiny.decoder.depth
    np.testing.assert_array_equal(short.with_method("eol").encode(TEXTS), tiny.encode(TEXTS))
    again = short.with_template(TEMPLATES["eol"])
    np.testing.assert_array_equal(again.encode(TEXTS), short.encode(TEXTS))
    short.use(short.decoder)
    with pytest.raises(UserError, match="and the model was loaded up to layer 1; load it"):
        short.with_method("eol")


def test_a_result_holds_the_record(embedders):
    tiny = embedders("tiny")
    described = tiny.with_method(METHODS["tp"]).describe()
    assert described["method"]["copy"] == {"start": 1, "exit": 2}
    assert "method" not in tiny.describe()


def test_words_need_one_prompts_state(embedders):
    tiny = embedders("tiny")
    assert len(tiny.with_method(METHODS["tp"]).words("a dog", 3)) == 3
    for name in ("meta", "sum"):
        with pytest.raises(UserError, match="words need the state after one prompt"):
            tiny.with_method(METHODS[name]).words("a dog")


def test_a_method_and_a_template_exclude_each_other(embedders):
    tiny = embedders("tiny")
    with pytest.raises(UserError, match="the method eol decides template; leave out template"):
        Embedder(tiny.pretrained, "cot", method="eol")
    with pytest.raises(UserError, match="does not fit a model of"):
        Embedder.from_pretrained("tiny", method="tp/eol")
