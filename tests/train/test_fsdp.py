"""Laws of `--fsdp`: the same losses, an eighth of the matrices on a device, one layer gathered."""

import itertools
import math
import re

import jax
import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models import build
from prompteol_jax.pretrained import load
from prompteol_jax.quant import formats as quant
from train.config import TrainConfig
from train.data.read import read_data
from train.loop import Run
from train.resolve import resolve
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder

STEPS = 10


def begun(folder, mesh="8x1", **flags):
    """A run of a few steps whose model is loaded."""
    how = dict(rank=4, dropout=0.0, lr=1e-3, remat="dots") | flags
    config = TrainConfig(mesh=mesh, batch=16, steps=STEPS, **how)
    data = read_data(config)
    settings = resolve(config, make_mesh(parse_mesh(mesh)), data.rows)
    return Run(settings, RunFolder.at(folder), data)


def losses(run):
    state = run.train_step.init(run.trainable.start)
    return [float(taken.metrics["loss"]) for taken in run.steps(state, run.collated(0))]


def matrices(run):
    """The arrays of the blocks' matrices, quantized ones in their parts."""
    leaves = build.leaves(run.trainable.decoder(run.trainable.start))
    found = [x for path, x in leaves.items() if path.startswith("blocks.") and path.endswith(".w")]
    return [
        part
        for x in found
        for part in ([x.parts()["codes"]] if isinstance(x, quant.Quantized) else [x])
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "flags"),
    [
        ("8x1", {}),
        ("8x1", {"quantize": "nf4"}),
        ("4x2", {"quantize": "int8"}),
        ("8x1", {"full": True, "rank": 64, "dropout": 0.05, "lr": 1e-4}),
    ],
    ids=["lora", "nf4", "int8 4x2", "full"],
)
def test_ten_losses_are_those_of_replicated_weights(mesh, flags, tmp_path):
    replicated, sharded = (
        begun(tmp_path / str(fsdp), mesh, fsdp=fsdp, **flags) for fsdp in (False, True)
    )
    data = parse_mesh(mesh)[0]
    for whole, part in zip(matrices(replicated), matrices(sharded), strict=True):
        sizes = [math.prod(x.sharding.shard_shape(x.shape)) for x in (whole, part)]
        assert sizes[0] == data * sizes[1]
        np.testing.assert_array_equal(whole, part)
    expected = losses(replicated)
    assert expected[-1] < expected[0] - 0.02
    np.testing.assert_allclose(losses(sharded), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_goes_on_with_fsdp_does_not_keep_what_it_gathers(tmp_path):
    run = begun(tmp_path, "2x1", fsdp=True, remat="auto")
    run.status.remat = {"2x1": "none"}  # as a checkpoint without --fsdp has it
    run.program.result()
    assert run.status.remat == {"2x1": "none", "2x1 --fsdp": "dots"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [{"quantize": "nf4"}, {}, {"full": True, "rank": 64, "dropout": 0.05}],
    ids=["nf4", "lora", "full"],
)
def test_no_more_than_a_matrix_of_one_layer_is_gathered(flags, checkpoint, tmp_path):
    model = str(checkpoint("llama-odd-tiny"))  # three layers are scanned
    run = begun(tmp_path, "4x1", fsdp=True, model=model, **flags)
    gathered = gathered_sizes(run.program.result().as_text())
    stacks = [x for x in matrices(run) if not x.sharding.is_fully_replicated]
    assert len(stacks) >= 5
    each = 2 if flags.get("quantize") == "nf4" else 1  # weights of a code
    one_layer = {each * x.size // len(x) for x in stacks}
    assert one_layer <= set(gathered)
    assert max(gathered) == max(one_layer)


def gathered_sizes(text):
    """The numbers in every array that an all-gather of a compiled program makes."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    shapes = [shape for result in results for shape in re.findall(r"\w+\[([\d,]+)\]", result)]
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


@pytest.mark.slow
def test_a_checkpoint_restores_in_the_other_layout(tmp_path):
    flags = dict(full=True, rank=64, dropout=0.05, lr=1e-4)
    runs = {fsdp: begun(tmp_path / "run", "4x1", fsdp=fsdp, **flags) for fsdp in (False, True)}
    for before, after in ((False, True), (True, False)):
        old, new = runs[before], runs[after]
        taken = next(old.steps(old.train_step.init(old.trainable.start), old.collated(0)))
        checkpoints = Checkpoints(tmp_path / str(before), keep=1)
        checkpoints.save(1, taken.state, {})
        checkpoints.close()
        first = new.train_step.init(new.trainable.start)
        _, restored, _ = Checkpoints(tmp_path / str(before), keep=1).restore(first)
        for ours, theirs, like in zip(
            *map(jax.tree.leaves, (restored, taken.state, first)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.sharding == like.sharding
        kept, changed = (
            [float(x.metrics["loss"]) for x in itertools.islice(run.steps(state, batches), 2)]
            for run, state, batches in (
                (old, taken.state, old.collated(1)),
                (new, restored, new.collated(1)),
            )
        )
        np.testing.assert_allclose(changed, kept, rtol=1e-6)


@pytest.mark.slow
def test_weights_that_do_not_fit_a_device_are_sharded_without_the_flag(
    tmp_path, monkeypatch, caplog
):
    assert not begun(tmp_path / "fits", "4x1").trainable.pretrained.fsdp
    monkeypatch.setattr(load, "device_memory", lambda: 2_000_000)
    found = begun(tmp_path / "large", "4x1").trainable.pretrained
    assert found.fsdp
    assert "GB with --fsdp, which is chosen" in caplog.text
    with pytest.raises(UserError, match="--remat none would keep"):
        begun(tmp_path / "none", "4x1", remat="none")
