"""Laws of the dequantization of nf4 as a TPU kernel, in the interpreter."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.ops import nf4, nf4_tpu
from prompteol_jax.ops.layer_slice import LayerSlice
from prompteol_jax.ops.scan import Saved


def drawn(rows, columns):
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (rows, columns // 2), np.uint8)
    scales = random.normal(size=(rows, columns // nf4.BLOCK)).astype(np.float32)
    return Saved(jnp.asarray(codes)), jnp.asarray(scales)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (32, 256),  # less than a program's columns
        (96, 768),  # rows and columns that programs do not divide
        (64, 8448),  # two registers of scales
        (1056, 512),  # several steps of a program
    ],
)
def test_weights_are_those_of_the_reference_bit_for_bit(rows, columns, dtype):
    codes, scales = drawn(rows, columns)
    assert nf4_tpu.supports(codes, scales, dtype) is None
    found = nf4_tpu.dequantize(codes, scales, dtype, interpret=True)
    expected = nf4.dequantize(codes, scales, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_codes_are_read_in_the_stack_of_all_layers():
    codes, scales = drawn(32, 512)
    stack = jnp.stack([codes.value ^ 255, codes.value])
    sliced = Saved(codes.value ^ 15, LayerSlice(stack, jnp.int32(1)))
    found = nf4_tpu.dequantize(sliced, scales, jnp.float32, interpret=True)
    np.testing.assert_array_equal(found, nf4.dequantize(codes, scales, jnp.float32))


@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (40, 256), (32, 320)])
def test_what_is_no_whole_tile_is_left_to_the_reference(rows, columns):
    assert "multiples of 32 and 256" in nf4_tpu.supports(*drawn(rows, columns), jnp.float32)
