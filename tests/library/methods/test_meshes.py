"""Laws of methods on meshes and on quantized weights: the vectors are those of one plain device."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.errors import UserError
from prompteol_jax.lora.lora import merge_lora
from prompteol_jax.methods.cost import gives_up
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.record import Collect, Copy, ExtraSlot, PostStage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("coarse")]

TEXTS = ["A dog runs.", "Two women are playing guitar together", "x", "(a) man, eating bread."]


def changed(name, **fields):
    """Return a shipped record with numbers for a model of two blocks."""
    method = find_method(name)
    if method.subtract is not None:
        fields["subtract"] = dataclasses.replace(method.subtract, block=0)
    return dataclasses.replace(method, **fields)


METHODS = {
    "prompts": find_method("ck"),  # ends below the last block
    "transform": find_method("reverse-eol"),
    "copy": changed("tp/eol", layer=None, copy=Copy(1, 2)),
    "subtract": changed("cp-nr/eol", layer=None),
    "scaled": changed("cp-self-scaled/eol", layer=None),
    "collect": find_method("attention-sum"),
    "collect-below": changed("aligned-values", collect=Collect(0, 1, "mean")),
    "slot": changed("kv-embedding/context", slot=ExtraSlot(0, 1)),
    "echo": find_method("echo/document-meantoken"),  # `tiny` has no end token
    "mean": find_method("mean"),
    "post": changed(
        "eol", post=(PostStage("embed-filter", ratio=2), PostStage("truncate", dims=8))
    ),
}
NAMES = list(METHODS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mesh", ["4x2", "2x4"])
def test_a_methods_vectors_are_the_same_on_every_mesh(mesh, name, embedders):
    alone, spread = (embedders("tiny", shape).with_method(METHODS[name]) for shape in ("1x1", mesh))
    np.testing.assert_allclose(spread.encode(TEXTS), alone.encode(TEXTS), rtol=0, atol=2e-5)
    given_up = [embedder.views.given_up for embedder in (alone, spread)]
    assert given_up[0] == given_up[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_on_nf4_is_that_of_the_dequantized_model(name, embedders):
    quantized = embedders("tiny", quantize="nf4")
    assert quantized.decoder.quantized
    whole = quantized.with_method("eol")
    whole.use(merge_lora(quantized.decoder))
    assert not whole.decoder.quantized
    found, expected = (each.with_method(METHODS[name]).encode(TEXTS) for each in (quantized, whole))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    plain = embedders("tiny").with_method(METHODS[name]).encode(TEXTS)
    assert np.abs(found - plain).max() > 1e-4  # nothing was read from plain weights


@pytest.mark.parametrize("name", NAMES)
def test_a_method_runs_packed_or_says_that_it_does_not(name, embedders):
    method, pretrained = METHODS[name], embedders("tiny").pretrained
    if "no packed rows" in gives_up(method):
        with pytest.raises(UserError, match=f"last tokens only, not pooling {method.pooling}"):
            Embedder(pretrained, method=method, plan="packed")
        return
    fixed, packed = (Embedder(pretrained, method=method, plan=p) for p in ("fixed", "packed"))
    np.testing.assert_allclose(packed.encode(TEXTS), fixed.encode(TEXTS), rtol=0, atol=2e-5)
