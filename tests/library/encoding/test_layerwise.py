"""Laws of the CPU's way to encode: block by block is the scanned program, and copies no weight."""

import jax
import numpy as np
import pytest

from prompteol_jax.encoding.layerwise import LayerwiseRunner, unstack
from prompteol_jax.encoding.runners import Reading, WholeRunner
from prompteol_jax.methods.pooling import LAST, EveryLayer, Mean
from prompteol_jax.models.decoder import Rows

IDS_BT = np.random.default_rng(1).integers(0, 60, (4, 12)).astype(np.int32)
ROWS = Rows(IDS_BT, np.array([[3], [11], [0], [7]], np.int32))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [("opt", "1x1"), ("llama", "4x2")])
def test_both_runners_give_the_same(name, mesh, decoders):
    _, model = decoders(name, mesh)
    ids_C, first_BS = np.arange(5, dtype=np.int32), np.array([[1], [4], [0], [7]], np.int32)
    mean = Reading(Mean(), (), first_BS)
    with jax.set_mesh(jax.tree.leaves(model)[0].sharding.mesh):
        found = []
        for runner in (WholeRunner(model), LayerwiseRunner(model)):
            cache = runner.prefill(ids_C)
            found.append(
                [
                    runner.encode(ROWS, None, mean),
                    runner.encode(ROWS, cache, mean),
                    runner.encode(ROWS, cache, Reading(LAST)),
                    runner.encode(ROWS, None, Reading(EveryLayer())),
                ]
            )
        for whole, layerwise in zip(*found, strict=True):
            np.testing.assert_allclose(layerwise, whole, atol=2e-5)


@pytest.mark.parametrize("mesh", ["1x1", "4x2"])
def test_blocks_are_views_of_the_stacked_weights_on_the_same_devices(mesh, decoders):
    _, model = decoders("opt", mesh)
    for number, block in enumerate(unstack(model.blocks)):
        stack, single = model.blocks.mlp.up.w[...], block.mlp.up.w[...]
        np.testing.assert_array_equal(single, stack[number])
        assert single.sharding.spec == jax.sharding.PartitionSpec(*stack.sharding.spec[1:])
        for whole, part in zip(stack.addressable_shards, single.addressable_shards, strict=True):
            assert part.device == whole.device
            offset = part.data.unsafe_buffer_pointer() - whole.data.unsafe_buffer_pointer()
            assert offset == number * part.data.nbytes
