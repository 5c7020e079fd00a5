"""Laws of the choice of rematerialisation: the fastest that fits is taken."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from prompteol_jax import adapters, axes, models, nn
from prompteol_jax.models import initial
from prompteol_jax.models.opt import OptConfig
from train.memory import ORDER, choose_remat, device_memory, step_bytes
from train.step import Learner, abstract_batch, state_places

CONFIG = OptConfig(L=6, D=64, N=4, F=256, V=60, P=80, E=64)


@pytest.fixture(scope="module")
def job():
    """A learner and placeholders of a step's arguments."""
    mesh = axes.make_mesh((1, 1))
    model = initial.random_decoder(CONFIG, mesh, jax.random.key(0), dtype=jnp.float32)
    model = adapters.add_lora(model, CONFIG, adapters.LoraConfig(rank=2), mesh, jax.random.key(0))
    graph, start, frozen = nnx.split(model, nn.Lora, ...)
    optimizer = optax.adam(1e-3)
    learner = Learner(graph, optimizer, state_places(optimizer, start, mesh), stochastic=True)
    batch = abstract_batch(mesh, 64, (64, 6), 64)
    prefix_C = jax.ShapeDtypeStruct((4,), jnp.int32)
    key = jax.random.key(0)
    return learner, (jax.eval_shape(learner.init, start), frozen, batch, prefix_C, key)


def test_the_fastest_that_fits_is_chosen(job):
    needs = choose_remat(*job, memory=0).needs
    assert list(needs) == list(ORDER)
    assert needs["none"] > 1.3 * needs["dots"] > 1.3 * needs["full"]
    for remat in ORDER:
        fit = choose_remat(*job, memory=needs[remat])
        assert fit.remat == remat
        assert list(fit.needs) == list(ORDER[: ORDER.index(remat) + 1])
        assert f"--remat {remat}" in str(fit)
        assert "does not fit" not in str(fit)


def test_where_nothing_fits_the_smallest_is_taken_and_said(job):
    fit = choose_remat(*job, memory=1000)
    assert fit.remat == "full"
    assert "does not fit: more --chunks" in str(fit)


def test_weights_and_state_are_part_of_a_step(job):
    learner, arguments = job
    leaves = jax.tree.leaves(arguments[:2])
    assert step_bytes(learner, arguments) > sum(x.size * x.dtype.itemsize for x in leaves)


def test_simulated_devices_share_the_machines_memory():
    whole = device_memory() * len(jax.local_devices())
    assert 2**30 < whole < 2**44


def test_the_abstract_decoder_is_enough(job):
    """No array is made: a step of a large model is planned on a small machine."""
    mesh = axes.make_mesh((4, 2))
    model = models.abstract_decoder(CONFIG, mesh, dtype=jnp.float32)
    model = adapters.attach(model, CONFIG, adapters.LoraConfig(rank=2), mesh)
    graph, start, frozen = nnx.split(model, nn.Lora, ...)
    optimizer = optax.adam(1e-3)
    places = state_places(optimizer, start, mesh)
    learner = Learner(graph, optimizer, places, shards=4, stochastic=True)
    state = learner.abstract_state(start)
    batch = abstract_batch(mesh, 64, (64, 6), 64)
    arguments = (state, frozen, batch, jax.ShapeDtypeStruct((4,), jnp.int32), jax.random.key(0))
    with jax.set_mesh(mesh):
        assert step_bytes(learner, arguments) < step_bytes(*job)
