"""Laws of resolving: what a flag leaves open is chosen from the data and the devices."""

import pytest

from prompteol_jax.mesh import make_mesh
from train.config import TrainConfig
from train.data.triplets import Triplet
from train.resolve import resolve

TRIPLETS = [Triplet("a", "b", "c")] * 40
PAIRS = [Triplet("a", "b", None)] * 40


def resolved(rows=TRIPLETS, **flags):
    return resolve(TrainConfig(batch=4, **flags), make_mesh((1, 1)), rows)


@pytest.mark.parametrize(
    ("flags", "steps", "warmup"),
    [
        ({}, 10, 1),
        ({"epochs": 2.5}, 25, 2),
        ({"steps": 7}, 7, 0),
        ({"steps": 3000}, 3000, 100),
        ({"warmup_steps": 0}, 10, 0),
        ({"warmup_steps": 9}, 10, 9),
    ],
    ids=str,
)
def test_steps_and_warm_up_follow_from_the_rows(flags, steps, warmup):
    settings = resolved(**flags)
    assert len(settings.batches) == settings.policy.steps == settings.schedule.steps == steps
    assert settings.schedule.warmup_steps == warmup


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(TRIPLETS, ("sent0", "sent1", "hard_neg")), (PAIRS, ("sent0", "sent1"))],
    ids=["triplets", "pairs"],
)
def test_columns_are_those_of_the_loss_that_the_rows_hold(rows, columns):
    assert resolved(rows).columns == columns


def test_the_dtype_is_chosen_by_the_device_and_recorded():
    assert resolved().flags.dtype == resolved().model.dtype == "float32"
    assert resolved(dtype="bfloat16").model.dtype == "bfloat16"


def test_refuses_rows_that_fill_no_batch():
    with pytest.raises(ValueError, match="a batch of 4, but only 3 rows"):
        resolved(TRIPLETS[:3])
