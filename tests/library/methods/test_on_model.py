"""Laws of a record on a model: its numbers are checked against the depth before any work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.methods import on_model
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.record import Collect, Copy, ExtraSlot


def changed(name, **fields):
    return dataclasses.replace(find_method(name), **fields)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (changed("tp/eol"), "layer 27 of 4"),
        (changed("tp/eol", layer=3), "copy.exit 7 of the 3 blocks that run"),
        (changed("cp-ns/eol", layer=-2), "subtract.block 4 of the 3 blocks that run"),
        (changed("attention-sum", collect=Collect(first=3, end=2)), "collect 3 to 2, blocks 3 to"),
        (changed("kv-embedding/query", slot=ExtraSlot(first=4)), "slot 4 to None, blocks 4 to 4"),
    ],
    ids=["layer", "copy", "subtract", "collect", "slot"],
)
def test_blocks_that_do_not_exist_are_refused(method, message):
    with pytest.raises(UserError) as error:
        on_model.check_depth(method, 4)
    assert message in str(error.value) and "does not fit a model of 4 layers" in str(error.value)


@pytest.mark.parametrize("name", ["tp/eol", "cp-ns/ck", "aligned-values", "kv-embedding/context"])
def test_a_published_method_fits_the_model_it_is_for(name):
    on_model.check_depth(find_method(name), 32)


def test_only_the_blocks_that_a_method_needs_are_loaded():
    assert on_model.layer_to_load(changed("attention-sum"), 32) is None
    assert on_model.layer_to_load(changed("attention-sum", collect=Collect(0, 0.5)), 32) == 16
    assert on_model.layer_to_load(find_method("tp/eol"), 32) == 27
    assert on_model.depth_on(find_method("tp/eol"), 32, None) == 27
    assert on_model.depth_on(find_method("tp/eol"), 32, 27) is None
    assert on_model.depth_on(find_method("eol"), 32, None) is None
    for name, loaded in (("tp/eol", 20), ("eol", 20)):
        with pytest.raises(UserError, match="and the model was loaded up to layer 20; load it"):
            on_model.depth_on(find_method(name), 32, loaded)


def test_weights_and_switches_are_by_block():
    mean = on_model.steps_of(find_method("aligned-values"), 8, 8).collect
    np.testing.assert_allclose(mean.weight_L, [0] * 4 + [0.25] * 4)
    slot = on_model.steps_of(find_method("kv-embedding/context"), 10, 10).slot
    assert np.flatnonzero(slot.on_L).tolist() == [4]
    every = on_model.every_block(on_model.steps_of(find_method("aligned-values"), 8, 8), 8)
    assert every.collect.weight_L.tolist() == [1] * 8


def test_a_method_decides_template_and_pooling():
    for template, pooling, what in (("eol", "last", "template"), (None, "mean", "pooling")):
        with pytest.raises(UserError, match=f"the method tp/eol decides {what}; leave out {what}"):
            on_model.choose("tp/eol", template, pooling, None)
    assert on_model.choose(None, "eol", "mean", 3) is None
    assert on_model.choose("tp/eol", None, "last", -2).layer == -2
    with pytest.raises(UserError, match="collects attention outputs: leave out the layer"):
        on_model.choose("attention-sum", None, "last", -2)


def test_the_placeholder_starts_from_the_same_numbers_everywhere():
    method = changed("tp/eol", copy=Copy(1, 2, seed=5))
    (one,), (other,) = (on_model.edits_of(method, 16) for _ in range(2))
    np.testing.assert_array_equal(one.initial_D, other.initial_D)
    assert on_model.edits_of(find_method("eol"), 16) == ()
