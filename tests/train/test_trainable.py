"""Laws of what trains and what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompteol_jax import nn
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.quant import formats as quant
from train import trainable
from train.config import TrainConfig
from train.run.checkpoints import Checkpoints
from train.step import TrainStep, state_places


def test_a_quantized_base_is_frozen_and_no_checkpoint_holds_it(tmp_path):
    mesh = make_mesh((1, 1))
    small, plain = (
        trainable.make_trainable(TrainConfig(rank=2, quantize=kind, dtype="float32"), mesh)
        for kind in ("nf4", None)
    )
    for ours, theirs in zip(*map(jax.tree.leaves, (small.start, plain.start)), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)
    kept = build.leaves(small.decoder(small.start))
    quantized = {path for path, leaf in kept.items() if isinstance(leaf, quant.Quantized)}
    assert quantized == {path for path in kept if path.endswith(".w")}
    optimizer = optax.adamw(1e-3)
    learner = TrainStep(small.graph, optimizer, state_places(optimizer, small.start, mesh))
    state = learner.init(small.start)
    assert all(leaf.dtype != jnp.uint8 for leaf in jax.tree.leaves(state))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {})
    checkpoints.close()
    adapter = sum(leaf.nbytes for leaf in jax.tree.leaves(small.start))
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(small.frozen))
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk < 3 * adapter + base / 4
    assert isinstance(small.decoder(small.start).last.attention.q.lora.a, nn.Lora)
