"""Laws of kernels on parts of stacks: they read the layer that is meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from prompteol_jax.ops.kernel import kernel_call
from prompteol_jax.ops.layer_slice import LayerSlice, unstacked

STACK = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8, 128)), jnp.float32)


def doubled(part, other, array):
    """Twice the part plus another part and an array, row by row."""
    block = pl.BlockSpec((1, 8, 128), lambda b: (b, 0, 0))

    def program(part_ref, other_ref, array_ref, y_ref):
        y_ref[...] = 2 * part_ref[...] + other_ref[...] + array_ref[...]

    return kernel_call(
        program,
        [part, other],
        [array],
        out_shape=jax.ShapeDtypeStruct(array.shape, array.dtype),
        grid=(4,),
        in_specs=[block] * 3,
        out_specs=block,
        interpret=True,
    )


@pytest.mark.parametrize("layer", range(3))
def test_a_kernel_reads_the_layer_that_is_meant(layer):
    part = LayerSlice(STACK, jnp.int32(layer))
    np.testing.assert_array_equal(part.value(), STACK[layer])
    y = jax.jit(doubled)(part, unstacked(STACK[0]), STACK[1])
    np.testing.assert_array_equal(y, 2 * STACK[layer] + STACK[0] + STACK[1])


def test_a_change_of_layout_holds_for_every_layer():
    part = LayerSlice(STACK, jnp.int32(2)).map(lambda x: x.swapaxes(1, 2).reshape(4, -1))
    np.testing.assert_array_equal(part.value(), STACK[2].swapaxes(1, 2).reshape(4, -1))
