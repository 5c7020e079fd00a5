"""Laws of the CPU's way to encode: block by block is the scanned program, and copies no weight."""

import jax
import numpy as np
import pytest

from prompteol_jax.encoding import batching
from prompteol_jax.encoding.layerwise import LayerwiseRunner, unstack
from prompteol_jax.models.decoder import Rows

IDS_BT = np.random.default_rng(1).integers(0, 60, (4, 12)).astype(np.int32)
ROWS = Rows(IDS_BT, np.array([[3], [11], [0], [7]], np.int32))


@pytest.mark.parametrize(("name", "mesh"), [("opt", "1x1"), ("llama", "4x2")])
def test_block_by_block_gives_what_the_scanned_program_gives(name, mesh, decoders):
    _, model = decoders(name, mesh)
    layers = LayerwiseRunner(model)
    ids_C = np.arange(5, dtype=np.int32)
    with jax.set_mesh(jax.tree.leaves(model)[0].sharding.mesh):
        for ours, whole in (
            (layers.encode_mean(ROWS), batching.encode_mean(model, ROWS)),
            (
                layers.encode(ROWS, layers.prefill(ids_C)),
                batching.encode(model, ROWS, batching.prefill(model, ids_C)),
            ),
        ):
            np.testing.assert_allclose(ours, whole, atol=2e-5)


@pytest.mark.parametrize("mesh", ["1x1", "4x2"])
def test_blocks_are_views_of_the_stacked_weights_and_lie_where_they_lay(mesh, decoders):
    _, model = decoders("opt", mesh)
    for number, block in enumerate(unstack(model.blocks)):
        stack, single = model.blocks.up.w[...], block.up.w[...]
        np.testing.assert_array_equal(single, stack[number])
        assert single.sharding.spec == jax.sharding.PartitionSpec(*stack.sharding.spec[1:])
        for whole, part in zip(stack.addressable_shards, single.addressable_shards, strict=True):
            assert part.device == whole.device
            offset = part.data.unsafe_buffer_pointer() - whole.data.unsafe_buffer_pointer()
            assert offset == number * part.data.nbytes
