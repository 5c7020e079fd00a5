"""The stream that a plan is made for."""

import json

import pytest

from prompteol_jax.text.template import TEMPLATES
from tpu import lengths
from tpu.lengths import read_lengths


@pytest.mark.parametrize(
    ("job", "total", "mean"), [("encode", 2909, 21.12), ("train", 33102, 18.84)]
)
def test_the_stored_lengths_are_those_of_the_real_sentences(job, total, mean):
    stored = read_lengths(None, job)
    assert stored.total == total
    assert stored.mean == pytest.approx(mean, abs=0.01)
    assert set(stored.prefix) == set(TEMPLATES)


def test_a_draw_has_the_shares_of_the_histogram_and_is_always_the_same():
    stored = read_lengths(None, "encode")
    drawn = stored.draw(1000)
    assert drawn == stored.draw(1000)
    assert sum(drawn) / 1000 == pytest.approx(stored.mean, rel=5e-3)
    assert drawn != sorted(drawn)


def test_an_unknown_template_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="eol-icl-2.7b"):
        read_lengths(None, "encode").shared("nonsense")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "nothing",
            "{}",
            "[]",
            "[" * 100_000,
            '{"source": "s", "prefix": {}, "counts": {"0": 1}}',
        ),
        *('{"source": "s", "prefix": {"eol": "x"}, "counts": {"1": 1}}',),
        *('{"source": "s", "prefix": {"eol": -1}, "counts": {"1": 1}}',),
    ],
)
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "lengths.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="lengths"):
        read_lengths(path, "encode")


def test_the_command_counts_a_file_of_lines(tmp_path, data):
    (tmp_path / "texts.txt").write_text("A man plays.\nA man plays.\nTwo dogs run in the snow.\n")
    lengths.main(
        [
            *("--data", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "out.json")),
            *("--tokenizer", str(data / "weights" / "opt-tokenizer")),
        ]
    )
    written = read_lengths(tmp_path / "out.json", "encode")
    assert written.total == 2
    assert json.loads((tmp_path / "out.json").read_text())["prefix"]["eol"] == 4
