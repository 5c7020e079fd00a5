"""Laws of what trains and what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prompteol_jax import nn
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.quant import formats as quant
from train.config import TrainConfig
from train.data.triplets import Triplet
from train.losses.infonce import infonce
from train.resolve import resolve
from train.run.checkpoints import Checkpoints
from train.step import TrainStep, state_shardings
from train.trainable import make_trainable


def test_a_quantized_base_is_frozen_and_no_checkpoint_holds_it(tmp_path):
    mesh = make_mesh((1, 1))
    rows = [Triplet("a", "b", None)] * 2
    configs = [TrainConfig(batch=2, rank=2, quantize=kind) for kind in ("nf4", None)]
    small, plain = (make_trainable(resolve(config, mesh, rows).model, mesh) for config in configs)
    for ours, theirs in zip(*map(jax.tree.leaves, (small.start, plain.start)), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)
    kept = build.leaves(small.decoder(small.start))
    quantized = {path for path, leaf in kept.items() if isinstance(leaf, quant.Quantized)}
    assert quantized == {path for path in kept if path.endswith(".w")}
    optimizer = optax.adamw(1e-3)
    train_step = TrainStep(
        graph=small.graph,
        optimizer=optimizer,
        shardings=state_shardings(optimizer, small.start, mesh),
        loss_function=infonce,
    )
    state = train_step.init(small.start)
    assert all(leaf.dtype != jnp.uint8 for leaf in jax.tree.leaves(state))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {})
    checkpoints.close()
    adapter = sum(leaf.nbytes for leaf in jax.tree.leaves(small.start))
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(small.frozen))
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk < 3 * adapter + base / 4
    assert isinstance(small.decoder(small.start).last.attention.q.lora.a, nn.Lora)
