"""Laws of the choice of rematerialization: the fastest that fits is taken."""

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
from train.losses.infonce import infonce
from train.remat_choice import ORDER, choose_remat, compiled, program_bytes
from train.step import TrainStep, abstract_batch, state_shardings

CONFIG = OptConfig(L=4, D=32, N=2, F=128, V=60, P=80, E=32)
NEEDS = dict(zip(ORDER, (300, 200, 100), strict=True))


def job(mesh):
    """A train_step and placeholders of a step's arguments: no array is made."""
    mesh = make_mesh(mesh)
    model = build.abstract_decoder(CONFIG, mesh, dtype=jnp.float32)
    model = lora.attach(model, CONFIG, lora.LoraConfig(rank=2), mesh)
    graph, start, frozen = nnx.split(model, nn.Lora, ...)
    optimizer = optax.adam(1e-3)
    train_step = TrainStep(
        graph=graph,
        optimizer=optimizer,
        shardings=state_shardings(optimizer, start, mesh),
        loss_function=infonce,
        shards=mesh.shape["data"],
    )
    batch = abstract_batch(mesh, 64, (64, 6), 64)
    prefix_C = jax.ShapeDtypeStruct((4,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return train_step, (train_step.abstract_state(start), frozen, batch, prefix_C, key)


@pytest.mark.slow
def test_more_recomputation_needs_less_memory_and_weights_and_state_are_part_of_it():
    train_step, arguments = job((1, 1))
    programs = [compiled(train_step, remat, arguments) for remat in ("none", "full")]
    needs = [program_bytes(program, arguments) for program in programs]
    state, frozen = arguments[:2]
    leaves = jax.tree.leaves((state, state, frozen))  # the state twice: it is copied for a save
    assert needs[0] > needs[1] > sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@pytest.fixture
def programs(monkeypatch):
    """A program is the name of its rematerialization; names of those that are compiled."""
    seen = []
    monkeypatch.setattr(
        remat_choice, "compiled", lambda train_step, remat, _: seen.append(remat) or remat
    )
    monkeypatch.setattr(remat_choice, "program_bytes", lambda program, _: NEEDS[program])
    return seen


@pytest.mark.fast("(1, 1)")
@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=str)
def test_a_step_is_lowered_from_shapes_alone(shape):
    train_step, arguments = job(shape)
    with jax.set_mesh(make_mesh(shape)):
        text = train_step.step.lower(*arguments).as_text()
    assert "stablehlo.dot_general" in text


@pytest.mark.parametrize(
    ("fitting", "remat", "tried"),
    [(300, "none", 1), (299, "dots", 2), (200, "dots", 2), (100, "full", 3), (99, "full", 3)],
)
def test_the_fastest_that_fits_is_taken(fitting, remat, tried, programs):
    train_step, arguments = job((1, 1))
    fit = choose_remat(train_step, arguments, fitting)
    assert (fit.remat, fit.program, list(fit.needs)) == (remat, remat, list(ORDER[:tried]))
    assert programs == list(ORDER[:tried])  # each of them once
    assert f"--remat {remat}" in str(fit)
    assert ("it does not fit: more --chunks" in str(fit)) == (fitting == 99)


def test_all_processes_take_what_fits_the_smallest_of_their_devices(monkeypatch, programs):
    monkeypatch.setattr(remat_choice.Channel, "exchange", lambda self, mine: [mine, 1])
    fit = choose_remat(*job((1, 1)), 300)
    assert (fit.remat, fit.program, programs) == ("dots", "dots", ["none", "dots"])
