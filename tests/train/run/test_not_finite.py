"""Laws of an end that is not finite: the rows at fault are told from the others."""

import json

import jax.numpy as jnp
import pytest

from train.data.batches import Batches
from train.data.triplets import Triplet
from train.run.folder import RunFolder
from train.run.not_finite import not_finite

ROWS = [Triplet(f"{n}", f"{n} too", None) for n in range(90)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([3, 5], "The vectors of 2 of its 30 rows are not finite: row {} of d."),
        ([], "The vectors of all its 30 rows are finite: row {} and 10 more of d."),
        (range(30), "The vectors of 30 of its 30 rows are not finite: row {} and 10 more of d."),
    ],
    ids=["some", "none", "all"],
)
def test_rows_whose_vectors_are_not_finite_are_named(tmp_path, bad, said):
    batches = Batches(ROWS, batch=30, epochs=1.0, seed=0)
    finite_B = jnp.array([n not in bad for n in range(30)])
    metrics = {"loss": jnp.float32("nan"), "grad_norm": jnp.float32(1), "finite_B": finite_B}
    folder = RunFolder.at(tmp_path)
    error = not_finite(folder, batches, "d", 2, metrics)
    numbers = [int(triplet.sent0) for triplet in batches[1]]
    named = [numbers[n] for n in bad or range(30)][:20]
    assert said.format(", ".join(map(str, named))) in str(error)
    assert str(error).startswith("step 2: loss nan, gradient norm 1.0. ")
    rows = [json.loads(line) for line in (tmp_path / "not_finite.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 2, "row": n, "finite": fine, **ROWS[n]._asdict()}
        for n, fine in zip(numbers, finite_B.tolist(), strict=True)
    ]
    folder.forget(after=1)
    assert (tmp_path / "not_finite.jsonl").read_text() == ""
