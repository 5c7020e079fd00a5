"""Laws of the log: a line a step for machines, events for TensorBoard, a line for people."""

import json

from train.run import metrics
from train.run.metrics import MetricsLog

RECORD = {
    "loss": 2.0,
    "accuracy": 0.5,
    "lr": 1e-4,
    "grad_norm": 1.5,
    "step_s": 0.5,
    "sentences_per_s": 48.0,
}


def write(run, first, steps):
    with MetricsLog(run, first, steps) as log:
        for step in range(first + 1, steps + 1):
            log.write({"step": step, **RECORD, "loss": 2.0 / step})


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_a_line(tmp_path):
    write(tmp_path, 0, 5)
    assert lines(tmp_path) == [{"step": s, **RECORD, "loss": 2.0 / s} for s in range(1, 6)]


def test_a_line_is_there_at_once(tmp_path):
    with MetricsLog(tmp_path, 0, 5) as log:
        log.write({"step": 1, **RECORD})
        assert len(lines(tmp_path)) == 1


def test_a_resumed_run_goes_on_where_the_file_ends(tmp_path):
    write(tmp_path, 0, 2)
    write(tmp_path, 2, 4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_events_hold_every_curve(tmp_path):
    write(tmp_path, 0, 3)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for name in RECORD:
        assert content.count(name.encode()) >= 3


def test_standard_error_says_where_the_run_is(tmp_path, capsys):
    write(tmp_path, 2, 12)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("step 3/12  loss 0.6667  48 sentences/s  ")
    assert shown[-1] == "step 12/12  loss 0.1667  48 sentences/s  0 min 0 s left"


def test_the_time_left_is_that_of_steps_and_not_of_what_came_before(tmp_path, capsys, monkeypatch):
    """A log that was opened before a compilation of ten minutes."""
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    with MetricsLog(tmp_path, 0, 101) as log:
        now[0] += 600
        log.write({"step": 1, **RECORD})
        for step in range(2, 12):
            now[0] += 10
            log.write({"step": step, **RECORD, "step_s": 10.0})
    shown = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[-1] for line in shown] == [
        "0 min 50 s left",
        "12 min 20 s left",
        "13 min 32 s left",
        "13 min 44 s left",
    ]
