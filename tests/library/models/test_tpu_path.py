"""What a TPU runs of a training step, its kernels step by step, computes what a CPU runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from prompteol_jax import nn
from prompteol_jax.lora import lora as adapters
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build, initial
from prompteol_jax.models.decoder import Rows
from prompteol_jax.models.llama import LlamaConfig
from prompteol_jax.models.opt import OptConfig
from prompteol_jax.models.rope import Rope
from prompteol_jax.ops import dropout, platform

CONFIGS = {
    "opt": OptConfig(L=4, D=128, N=2, F=256, V=50, P=140, E=128, dropout=0.1),
    "llama": LlamaConfig(
        L=4, D=128, N=4, K=2, H=64, F=256, V=50, P=140, norm_eps=1e-6, rope=Rope(), tied=False
    ),
}
B, T = 2, 128


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """Take the paths of a TPU; kernels are run step by step."""
    call = pl.pallas_call

    def interpreted(*given, **options):
        return call(*given, **{**options, "interpret": True})

    def begin():
        monkeypatch.setattr(platform, "current", lambda: "tpu")
        monkeypatch.setattr(pl, "pallas_call", interpreted)
        monkeypatch.setattr(pltpu, "with_memory_space_constraint", lambda x, _: x)

    return begin


def adapted(config, mesh):
    """A decoder with an adapter none of whose factors is 0."""
    model = initial.random_decoder(config, mesh, jax.random.key(0), dtype=jnp.float32)
    lora = adapters.LoraConfig(rank=8, dropout=0.1)
    model = adapters.add_lora(model, config, lora, mesh, jax.random.key(1))
    rng = np.random.default_rng(0)
    leaves = {
        path: jax.device_put(np.float32(0.1) * rng.standard_normal(leaf.shape), leaf.sharding)
        if path.endswith(".lora.b")
        else leaf
        for path, leaf in build.leaves(model).items()
    }
    return build.fill(model, jax.tree.map(lambda x: x.astype(jnp.float32), leaves))


def gradients(model, mesh, kind):
    """Last tokens' states, and the gradient of the adapter, with dropout and 3 tokens ahead."""
    rng = np.random.default_rng(1)
    start = np.zeros((B, T), np.int32)
    start[:, :3], start[:, 3:60], start[:, 60:] = 3, 3, 60
    ids = jnp.asarray(rng.integers(0, 50, (B, T)), jnp.int32)
    rows = Rows(ids, jnp.array([[59, 127], [59, 120]]), jnp.asarray(start))
    place = jnp.broadcast_to(jnp.arange(T), (B, T))
    keys = dropout.token_keys(jax.random.key(2), place * 0 + jnp.arange(B)[:, None], place)
    graph, factors, frozen = nnx.split(model, nn.Lora, ...)
    weight = jnp.asarray(rng.standard_normal((B, 2, 128)), jnp.float32)

    def value(factors):
        model = nnx.merge(graph, factors, frozen)
        z_BSD = model(rows, None, keys, remat=kind, prefix_tokens=3)
        return (z_BSD * weight).sum(), z_BSD

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(value, has_aux=True))(factors)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("opt", (1, 1)), ("llama", (2, 1))], ids=str)
def test_states_and_gradients_are_those_of_the_plain_path(name, shape, as_on_a_tpu):
    mesh = make_mesh(shape, jax.devices()[: shape[0]])
    model = adapted(CONFIGS[name], mesh)
    wanted = gradients(model, mesh, "none")
    as_on_a_tpu()
    for kind in ("dots", "full"):
        found = gradients(model, mesh, kind)
        for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4 * float(jnp.abs(one).max()))
