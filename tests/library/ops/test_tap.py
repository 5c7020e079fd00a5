"""Laws of taps: attention shows a tap its heads and its output, and takes what the tap returns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops.tap import Tap


class Halving(Tap):
    def heads(self, y_BQNH, context):
        return y_BQNH / 2

    def output(self, y_BQD, context):
        self.found = y_BQD


def test_a_tap_changes_the_heads_and_reads_the_output(decoders):
    _, model = decoders("llama")
    rows = Rows(jnp.arange(8)[None], jnp.array([[7]]))

    @jax.jit
    def run(model):
        x_BTD, context = model.begin(rows, 0)
        context = context.of_layer(model.layers.info(model.depth - 1))
        plain, _ = model.last.attention(x_BTD, context, None)
        tap = Halving()
        model.last.attention(x_BTD, dataclasses.replace(context, tap=tap), None)
        bias = model.last.attention.o.b
        return [x if bias is None else x - bias[...] for x in (plain, tap.found)]

    plain, halved = run(model)
    np.testing.assert_allclose(halved, plain / 2, atol=1e-6)
    assert jnp.abs(plain).max() > 0.01


def test_the_taps_of_all_layers_are_stacked(decoders):
    _, model = decoders("llama")
    rows = Rows(jnp.arange(8)[None], jnp.array([[7]]))
    found = jax.jit(lambda model: model.inner(rows, tap=lambda _: Halving())[1])(model)
    assert found[0] is None and found[1].shape == (model.depth - 1, 1, 8, model.width)
