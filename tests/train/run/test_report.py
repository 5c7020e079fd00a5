"""Laws of a run's page: what was measured is on it, and nothing is fetched to show it."""

import json
import re

import numpy as np
import pytest

from train.run import report
from train.run.report import write_run_report

CONFIG = {"model": "tiny", "mesh": "4x2", "dev": None, "lora": {"rank": 64}, "note": "<b>&"}
METRICS = [
    {
        "step": step,
        "loss": 5 * 0.9**step,
        "accuracy": step / 30,
        "lr": 5e-4,
        "grad_norm": 1.5,
        "step_s": 0.5,
        "sentences_per_s": 800.0,
    }
    for step in range(1, 31)
]
SCORES = [{"step": 0, "dev": 35.0}, {"step": 10, "dev": 72.125}, {"step": 30, "dev": 70.5}]


def write_run(folder, config=CONFIG, metrics=METRICS, scores=SCORES):
    (folder / "config.json").write_text(json.dumps(config))
    for name, records in (("metrics.jsonl", metrics), ("dev.jsonl", scores)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_page_holds_what_was_measured(tmp_path):
    path = write_run_report(write_run(tmp_path))
    page = path.read_text()
    assert path == tmp_path / "report.html"
    for text in (
        "Training run: tiny",
        "72.12 at step 10",
        "4.5000 to 0.2120",
        "15.0 s",
        "800.0 (median)",
        "Development Spearman",
        "Learning rate",
        "Sentences a second",
        ">lora.rank<",
        "&lt;b&gt;&amp;",
    ):
        assert text in page
    assert page.count("<svg") == 6


def test_a_metric_of_another_loss_has_its_curve(tmp_path):
    metrics = [{**record, "margin": 0.1} for record in METRICS]
    page = write_run_report(write_run(tmp_path, metrics=metrics)).read_text()
    assert page.count("<svg") == 7
    assert "margin" in page


@pytest.mark.parametrize(
    ("values", "from_zero"),
    [([3.74, 3.6, 3.45], False), ([5.0, 1.0, 0.4], True), ([0.0, 0.9, 1.0], True)],
    ids=["flat from zero", "falls to zero", "rises from zero"],
)
def test_an_axis_shows_the_curve(values, from_zero):
    steps, heights = np.arange(3.0), np.array(values)
    (axes,) = report._draw_curve(report._CURVES[0], steps, heights).axes
    low, high = axes.get_ylim()
    assert (low == 0) == from_zero
    assert heights.max() - heights.min() > 0.6 * (high - low)


def test_the_page_needs_nothing_else(tmp_path):
    page = write_run_report(write_run(tmp_path)).read_text()
    assert not re.search(r"<script|<link|<img|@import|(src|href)=\"(?!#)", page)
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_a_long_run_stays_small(tmp_path):
    noise = np.random.default_rng(0).random(20_000)
    metrics = [dict(METRICS[0], step=i, loss=x, lr=x) for i, x in enumerate(noise.tolist(), 1)]
    path = write_run_report(write_run(tmp_path, metrics=metrics))
    assert path.stat().st_size < 300_000


@pytest.mark.parametrize(
    ("metrics", "scores", "drawings"), [([], SCORES, 1), (METRICS, [], 5), ([], [], 0)]
)
def test_a_run_cut_short_has_a_page_too(tmp_path, metrics, scores, drawings):
    page = write_run_report(write_run(tmp_path, metrics=metrics, scores=scores)).read_text()
    assert page.count("<svg") == drawings


def test_refuses_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds no metrics.jsonl, dev.jsonl; a training"):
        write_run_report(tmp_path)


@pytest.mark.parametrize("line", ['{"step": 2, "los', "[1]", '{"loss": 1}', '{"step": null}'])
def test_refuses_a_line_that_is_no_record(tmp_path, line):
    write_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 31: a record such as"):
        write_run_report(tmp_path)
