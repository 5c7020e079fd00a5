"""Laws of the choice of rematerialization: the fastest that fits is taken."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.lora import lora
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.models.opt import OptConfig
from train import remat_choice
from train.remat_choice import ORDER, choose_remat, device_memory, step_bytes
from train.step import TrainStep, abstract_batch, state_places

CONFIG = OptConfig(L=4, D=32, N=2, F=128, V=60, P=80, E=32)
NEEDS = dict(zip(ORDER, (300, 200, 100), strict=True))


def job(mesh):
    """A learner and placeholders of a step's arguments: no array is made."""
    mesh = make_mesh(mesh)
    model = build.abstract_decoder(CONFIG, mesh, dtype=jnp.float32)
    model = lora.attach(model, CONFIG, lora.LoraConfig(rank=2), mesh)
    graph, start, frozen = nnx.split(model, nn.Lora, ...)
    optimizer, shards = optax.adam(1e-3), mesh.shape["data"]
    places = state_places(optimizer, start, mesh)
    learner = TrainStep(graph, optimizer, places, shards)
    batch = abstract_batch(mesh, 64, (64, 6), 64)
    prefix_C = jax.ShapeDtypeStruct((4,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return learner, (learner.abstract_state(start), frozen, batch, prefix_C, key)


def test_more_recomputation_needs_less_memory_and_weights_and_state_are_part_of_it():
    learner, arguments = job((1, 1))
    needs = [step_bytes(dataclasses.replace(learner, remat=r), arguments) for r in ("none", "full")]
    state, frozen = arguments[:2]
    leaves = jax.tree.leaves((state, state, frozen))  # the state twice: it is copied for a save
    assert needs[0] > needs[1] > sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=str)
def test_a_step_is_lowered_from_shapes_alone(shape):
    learner, arguments = job(shape)
    with jax.set_mesh(make_mesh(shape)):
        text = learner.step.lower(*arguments).as_text()
    assert "stablehlo.dot_general" in text


@pytest.mark.parametrize(
    ("fitting", "remat", "tried"),
    [(300, "none", 1), (299, "dots", 2), (200, "dots", 2), (100, "full", 3), (99, "full", 3)],
)
def test_the_fastest_that_fits_is_taken(fitting, remat, tried, monkeypatch):
    monkeypatch.setattr(remat_choice, "step_bytes", lambda learner, _: NEEDS[learner.remat])
    learner, arguments = job((1, 1))
    fit = choose_remat(learner, arguments, fitting)
    assert (fit.remat, list(fit.needs)) == (remat, list(ORDER[:tried]))
    assert f"--remat {remat}" in str(fit)
    assert ("it does not fit: more --chunks" in str(fit)) == (fitting == 99)


def test_all_processes_take_what_fits_the_smallest_of_their_devices(monkeypatch):
    monkeypatch.setattr(remat_choice, "step_bytes", lambda learner, _: NEEDS[learner.remat])
    monkeypatch.setattr(remat_choice.Channel, "exchange", lambda self, mine: [mine, 1])
    assert choose_remat(*job((1, 1)), 300).remat == "dots"


def test_simulated_devices_share_the_machines_memory():
    whole = device_memory() * len(jax.local_devices())
    assert 2**30 < whole < 2**44
