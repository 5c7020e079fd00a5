"""Laws of alignment: the formula in float64 torch, and a reference that is the policy at first."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from safetensors.numpy import load_file

from prompteol_jax import nn
from prompteol_jax.distributed import Share
from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora import peft
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models import build
from prompteol_jax.pretrained.load import load_pretrained, read_lm_head
from train.align import log_probs
from train.align.collate import AlignCollator, choose_dialog_shape
from train.align.dialogs import Dialogs
from train.align.dpo import dpo
from train.align.frames import FRAMES, REPHRASE
from train.align.step import AlignStep
from train.data.batches import Batches
from train.optimizer import Schedule, make_optimizer
from train.step import state_shardings

BETA = 0.3
ROWS = 8


def aligned(folder, nli, mesh="1x1", *, fresh=False, dropout=0.0, **how):
    """A step, what trains, what is frozen, a batch, and the dialogs in it."""
    mesh = make_mesh(parse_mesh(mesh))
    pretrained = load_pretrained(str(folder), mesh, dtype=jnp.float32, base_dropout=None)
    lora = adapters.LoraConfig(rank=4, alpha=8.0, dropout=dropout)
    decoder = adapters.add_lora(
        pretrained.decoder, pretrained.config, lora, mesh, jax.random.key(0)
    )
    if not fresh:
        rng = np.random.default_rng(0)
        moved = {
            path: jax.device_put(
                rng.standard_normal(leaf.shape).astype(np.float32) * 0.1, leaf.sharding
            )
            for path, leaf in build.leaves(decoder).items()
            if path.endswith(".lora.b")
        }
        decoder = build.fill(decoder, build.leaves(decoder) | moved)
    graph, start, frozen = nnx.split(decoder, nn.Lora, ...)
    optimizer = make_optimizer(Schedule(1e-3, 10, 0))
    step = AlignStep(
        graph=graph,
        optimizer=optimizer,
        shardings=state_shardings(optimizer, start, mesh),
        loss_function=lambda *z: dpo(*z, beta=BETA),
        shards=mesh.shape["data"],
        stochastic=dropout > 0,
        **how,
    )
    dialogs = Dialogs(pretrained.tokenizer, FRAMES["plain"], REPHRASE, 32, pretrained.config.P)
    shape = choose_dialog_shape(Batches(nli, batch=len(nli), epochs=1.0, seed=0), dialogs)
    batch = AlignCollator(dialogs, Share.of(mesh), shape)(nli).batch
    return step, start, (frozen, read_lm_head(pretrained)), batch, dialogs(nli), decoder, pretrained


def gradients(step, start, frozen, batch, key=None):
    with jax.set_mesh(jax.tree.leaves(start)[0].sharding.mesh):
        evaluate = jax.jit(jax.value_and_grad(step.loss, has_aux=True))
        return evaluate(start, frozen, batch, np.zeros(0, np.int32), key)


def torch_dpo(folder, adapter, dialogs):
    """Loss and gradients of the formula in float64, a dialog at a time."""
    import torch

    model = oracle.load_adapted(folder, adapter).double().eval()
    for name, weight in model.named_parameters():
        weight.requires_grad = "lora_" in name

    def log_prob(dialog):
        ids = torch.tensor(np.concatenate([dialog.request, dialog.answer])[None].astype(np.int64))
        log_p = model(ids).logits[0, :-1].log_softmax(-1)
        return log_p.gather(1, ids[0, 1:, None])[-dialog.answer.size :].sum()

    policy = torch.stack([log_prob(dialog) for dialog in dialogs]).reshape(-1, 2)
    with torch.no_grad(), model.disable_adapter():
        reference = torch.stack([log_prob(dialog) for dialog in dialogs]).reshape(-1, 2)
    reward = BETA * (policy - reference)
    loss = -torch.nn.functional.logsigmoid(reward[:, 0] - reward[:, 1]).mean()
    loss.backward()
    found = {
        name.replace(".default.", "."): weight.grad.numpy()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    return loss.item(), found, reward.detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt-tiny", "llama-tiny"])
def test_loss_and_gradients_are_those_of_the_formula_in_float64(name, checkpoint, nli, tmp_path):
    folder, rows = checkpoint(name), nli[:ROWS]
    step, start, frozen, batch, dialogs, decoder, pretrained = aligned(folder, rows)
    peft.save_adapter(decoder, pretrained.config, tmp_path / "adapter", base=str(folder))
    (loss, metrics), grads = gradients(step, start, frozen, batch)
    expected, theirs, reward = torch_dpo(folder, tmp_path / "adapter", dialogs)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["chosen_reward"], reward[:, 0].mean(), rtol=1e-4)
    assert np.abs(reward).max() > 0.05
    assert metrics["finite_B"].all()
    peft.save_adapter(
        nnx.merge(step.graph, grads, frozen[0]), pretrained.config, tmp_path / "grads", base="x"
    )
    ours = load_file(tmp_path / "grads" / "adapter_model.safetensors")
    largest = max(np.linalg.norm(g) for g in theirs.values())
    assert ours.keys() == theirs.keys()
    for tensor, wanted in theirs.items():
        error = np.linalg.norm(ours[tensor] - wanted)
        assert error <= 1e-5 * max(np.linalg.norm(wanted), 0.1 * largest), tensor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "chunks", "dropout"), [("1x1", 1, 0.1), ("4x2", 2, 0.0)], ids=["1x1", "4x2"]
)
def test_a_fresh_adapter_is_its_reference_bit_for_bit(mesh, chunks, dropout, checkpoint, nli):
    step, start, frozen, batch, *_ = aligned(
        checkpoint("llama-gqa-tiny"), nli[:ROWS], mesh, fresh=True, dropout=dropout, chunks=chunks
    )
    key = jax.random.key(0) if dropout else None
    (loss, metrics), grads = gradients(step, start, frozen, batch, key)
    assert loss == np.float32(np.log(2))
    assert metrics["chosen_reward"] == metrics["rejected_reward"] == metrics["margin"] == 0
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "chunks", "remat", "block"),
    [("4x2", 2, "dots", 2**24), ("1x1", 1, "none", 10**6)],
    ids=["mesh and chunks", "blocks"],
)
def test_cutting_the_work_changes_nothing(mesh, chunks, remat, block, checkpoint, nli, monkeypatch):
    folder, rows = checkpoint("opt-tiny"), nli[:ROWS]
    (alone, _), theirs = gradients(*aligned(folder, rows)[:4])
    monkeypatch.setattr(log_probs, "BLOCK", block)
    (cut, _), ours = gradients(*aligned(folder, rows, mesh, chunks=chunks, remat=remat)[:4])
    np.testing.assert_allclose(cut, alone, rtol=1e-6)
    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-5 * largest


def test_logits_are_made_for_a_block_of_positions_at_a_time(monkeypatch):
    monkeypatch.setattr(log_probs, "BLOCK", 4 * 3 * 1000)
    z = jax.ShapeDtypeStruct((4, 64, 16), jnp.float32)
    head = jax.ShapeDtypeStruct((1000, 16), jnp.float32)
    target = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    function = jax.grad(lambda z, h, t: log_probs.answer_log_probs(z, h, t).sum())
    text = jax.jit(function).lower(z, head, target).compile().as_text()
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)]
    with_vocabulary = [shape for shape in shapes if 1000 in shape and 16 not in shape]
    assert with_vocabulary
    assert max(np.prod(shape) for shape in with_vocabulary) == 4 * 3 * 1000


@pytest.mark.parametrize("softcap", [None, 3.0], ids=str)
def test_log_probs_are_the_sums_over_targets_in_float64(softcap):
    rng = np.random.default_rng(0)
    z, head = rng.standard_normal((2, 5, 8)), rng.standard_normal((11, 8))
    target = np.array([[3, 1, log_probs.IGNORED, 0, 10], [log_probs.IGNORED] * 5])
    logits = z @ head.T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [sum(log_p[0, n, t] for n, t in enumerate(target[0]) if t >= 0), 0.0]
    found = log_probs.answer_log_probs(
        jnp.float32(z), jnp.float32(head), jnp.int32(target), softcap
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
