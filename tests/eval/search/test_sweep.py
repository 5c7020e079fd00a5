"""Every cell scores what its record scores alone, in few passes, and a kill loses nothing."""

import dataclasses
import json

import numpy as np
import pytest

from eval.search.axes import parse_axes
from eval.search.sweep import Sweep, cells_of, fixed_cells, summaries
from eval.shared.journal import Journal
from eval.sts import scores
from eval.sts.pairs import Pairs
from prompteol_jax import Embedder
from prompteol_jax.errors import UserError
from prompteol_jax.methods.library import find_method
from prompteol_jax.methods.record import Method

pytestmark = pytest.mark.usefixtures("coarse")

SUBJECTS = "a man", "the old dog", "two women", "a small child", "the black cat"
DEEDS = "is sleeping", "plays the guitar", "runs quickly outdoors today", "is eating bread"
TEXTS = [f"{subject} {deed}" for subject in SUBJECTS for deed in DEEDS]
RNG = np.random.default_rng(0)
SIDES = RNG.permutation(len(TEXTS)), RNG.permutation(len(TEXTS))
PAIRS = Pairs(
    "made",
    [TEXTS[n] for n in SIDES[0]],
    [TEXTS[n] for n in SIDES[1]],
    RNG.integers(0, 6, len(TEXTS)).astype(np.float64),
)
FIELDS = {
    "name": "both",
    "prompts": [{"prefix": 'This sentence : <PST> "', "suffix": '" means in one word:"'}],
    "copy": {"start": 0, "exit": 1},
    "subtract": {"block": 1, "kind": "ns", "scale": 2.0, "template": "cot"},
    "post": [{"kind": "truncate", "dims": 16}],
}
BOTH = Method.from_json(FIELDS, "test")


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", dtype="float32", method=BOTH)


@pytest.fixture
def sweep(embedder, tmp_path):
    """Makes a sweep with a journal of its own, unless one is named."""

    def make(name="journal"):
        return Sweep(embedder, PAIRS, Journal(tmp_path / name, {"of": "a test"}))

    return make


def grid(text, method=BOTH, depth=2):
    axes = parse_axes(text, method, depth)
    return cells_of(method, axes, depth), fixed_cells(method, axes, depth)


@pytest.mark.slow
def test_every_cell_scores_what_its_record_scores_alone(embedder, sweep):
    cells, fixed = grid("layer,exit,block=0,scale=0.5/2,dims=8/32")
    found = sweep()
    cosines = found.run([*fixed, *cells])
    assert len(cells) == (2 + 3) * 2 * 2  # layer 1 has no exit 2
    assert found.encodings == 3 * 2 + 2  # and the two that nothing is swept for
    for cell in (*fixed, *cells[::3]):
        alone = scores.development_score(embedder.with_method(cell.method), PAIRS)
        (row,) = summaries([cell], cosines, PAIRS.gold, cell)
        assert row["score"] == pytest.approx(alone, abs=0.01)
    assert len({cosine.tobytes() for cosine in cosines.values()}) > len(cells) // 2


def test_a_sweep_that_was_killed_goes_on_to_the_same_bits(sweep, tmp_path):
    cells, _ = grid("layer,exit")
    whole = sweep("whole").run(cells)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn").write_bytes(b"".join(lines[:3]) + lines[3][:30])
    resumed = sweep("torn")
    assert resumed.journal.resumed == 2
    again = resumed.run(cells)
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[key], whole[key]) for key in whole)
    third = sweep("torn")
    third.run(cells)
    assert third.encodings == 0


def test_a_copy_that_would_end_before_it_starts_is_no_cell():
    cells, _ = grid("start,exit")
    assert [tuple(cell.settings.values()) for cell in cells] == [
        *((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
    ]
    late = dataclasses.replace(BOTH, copy=dataclasses.replace(BOTH.copy, start=2, exit=2))
    with pytest.raises(UserError, match="no combination of these values is a method"):
        grid("exit=0/1", late)


def test_the_last_layer_by_its_number_is_the_one_behind_the_norm():
    cells, _ = grid("block=0,layer=-1/1")
    assert [cell.method.layer for cell in cells] == [None, 1]
    assert [cell.settings["layer"] for cell in cells] == [2, 1]


def test_without_edits_there_are_the_prompts_alone():
    _, (none, given) = grid("exit")
    assert given.method is BOTH and given.settings == {"exit": 1}
    (view,) = none.method.prompts
    assert view.template.fill("x") == 'This sentence : "x" means in one word:"'
    assert none.settings == {"exit": None}
    assert set(json.loads(json.dumps(none.method.to_json()))) == {"name", "prompts"}


def test_a_record_of_a_deeper_model_is_swept_without_itself():
    deep = find_method("tp/eol")  # layer 27, copies up to block 6
    cells, (none, given) = grid("layer,exit", deep)
    assert given is None and none.method.layer is None
    assert [tuple(cell.settings.values()) for cell in cells] == [(1, 1), (2, 1), (2, 2)]


def test_a_gain_is_over_the_same_resamples(sweep):
    cells, (none, _) = grid("exit")
    cosines = sweep().run([*cells, none])
    *_, itself = summaries([*cells, none], cosines, PAIRS.gold, none)
    assert (itself["gain"], itself["gain_interval"]) == (0, [0, 0])
