"""Laws of quantizing: to the bit what bitsandbytes makes on a CPU, on one thread of torch."""

import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import torch

from prompteol_jax.ops import nf4
from prompteol_jax.quant import bitsandbytes
from prompteol_jax.quant import formats as quant
from prompteol_jax.quant.torch_sum import torch_mean

SHAPES = [(1, 1), (3, 5), (7, 9), (64, 64), (96, 128), (64, 176), (512, 80), (1000, 1000)]


def drawn(shape, dtype, scale=1.0):
    """Rows of very different magnitudes, the first one zero."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape) * rng.lognormal(size=(shape[0], 1)) * scale
    w[0] = 0
    return w.astype(dtype)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sum of many scales depends on how many share it
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_scales_and_offset_are_those_of_bitsandbytes(shape, dtype):
    import bitsandbytes.functional as bnb  # takes seconds

    w = drawn(shape, dtype)
    ours = bitsandbytes.quantize("nf4", w, "w")
    codes, state = bnb.quantize_4bit(
        torch.tensor(w), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    theirs = codes.numpy().reshape(-1)
    np.testing.assert_array_equal(ours["codes"][: theirs.size], theirs)
    assert not ours["codes"][theirs.size :].any()
    np.testing.assert_array_equal(ours["scale_codes"], state.absmax.numpy())
    np.testing.assert_array_equal(ours["steps"], state.state2.absmax.numpy())
    np.testing.assert_array_equal(ours["offset"], state.offset.numpy())
    np.testing.assert_array_equal(quant.SCALE_LEVELS, state.state2.code.numpy())
    np.testing.assert_array_equal(nf4.LEVELS, state.code.numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_codes_and_peaks_are_those_of_bitsandbytes(shape, dtype):
    import bitsandbytes.functional as bnb  # takes seconds

    w = drawn(shape, dtype)
    ours = bitsandbytes.quantize("int8", w, "w")
    codes, peaks, _ = bnb.int8_vectorwise_quant(torch.tensor(w))
    np.testing.assert_array_equal(ours["peaks"][:, 0], peaks.numpy())
    assert not ours["codes"][0].any()  # bitsandbytes divides by zero there
    np.testing.assert_array_equal(ours["codes"][1:], codes.numpy()[1:])


def test_levels_are_those_of_qwix_where_scales_are_whole():
    w = drawn((256, 128), "float32")
    ours = bitsandbytes.quantize("nf4", w, "w")["codes"]
    # The contracted axis comes first there.
    array = qwix.quantize(jnp.asarray(w.T), "nf4", channelwise_axes=(1,), tiled_axes={0: 64})
    theirs = np.asarray(qwix.dequantize(array)).T
    codes = np.stack([ours >> 4, ours & 15], -1).reshape(256, 2, 64)
    peaks = np.abs(w).reshape(256, 2, 64).max(-1, keepdims=True)
    np.testing.assert_allclose(
        (nf4.LEVELS[codes] * peaks).reshape(256, 128), theirs, rtol=1e-6, atol=0
    )


def test_a_scale_is_looked_up_in_the_table_of_bitsandbytes():
    import bitsandbytes.functional as bnb  # takes seconds

    x = np.random.default_rng(0).normal(size=100_001).astype(np.float32) ** 3
    ours = bitsandbytes.double_quantize(x, torch_mean(x))
    offset = torch.tensor(x).mean()
    theirs, state = bnb.quantize_blockwise(torch.tensor(x) - offset, blocksize=256)
    np.testing.assert_array_equal(ours["scale_codes"], theirs.numpy())
    np.testing.assert_array_equal(ours["steps"], state.absmax.numpy())


@pytest.mark.parametrize("kind", quant.KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(4, 64), (3, 5)])
def test_refuses_what_is_not_finite_by_name(kind, value, shape):
    w = drawn(shape, "float32")
    w[2, 3] = value
    with pytest.raises(ValueError, match="tensor 'fc1' holds NaN or infinity"):
        bitsandbytes.quantize(kind, w, "fc1")


def test_the_whole_of_a_tensor_decides_its_scales_codes():
    """What a shard would make of its own half is something else: hence no shard quantizes alone."""
    w = drawn((64, 128), "float32")
    whole, half = (bitsandbytes.quantize("nf4", part, "w") for part in (w, w[:32]))
    assert whole["offset"] != half["offset"]
    assert (whole["scale_codes"][: half["scale_codes"].size] != half["scale_codes"]).any()
    assert (whole["codes"][: half["codes"].size] == half["codes"]).all()


@pytest.mark.parametrize("kind", quant.KINDS)
def test_rows_of_a_fused_matrix_have_the_codes_that_they_have_in_it(kind):
    """Where they divide no group of scales, as in every published Phi; else they stand alone."""
    w, rows = drawn((384, 128), "float32"), slice(128, 256)
    whole, ours = bitsandbytes.quantize(kind, w, "w"), bitsandbytes.quantize(kind, w, "w", rows)
    for name, part in ours.items():
        expected = whole[name] if name == "offset" else np.split(whole[name], 3)[1]
        np.testing.assert_array_equal(part, expected)
    across = slice(64, 128)
    alone = bitsandbytes.quantize(kind, w[across], "w")
    for name, part in bitsandbytes.quantize(kind, w, "w", across).items():
        np.testing.assert_array_equal(part, alone[name])
