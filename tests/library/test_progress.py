"""Long work speaks: a bar on a terminal, a line a minute in a log, nothing on demand."""

import re

import pytest

from prompteol_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress._LogLines, "said_at", 1000.0)
    return now


def test_a_log_gets_a_line_a_minute_with_rate_and_time_left(clock, capsys):
    with progress.progress_bar("encode", 1200) as advance:
        for _ in range(100):
            clock[0] += 1.5
            advance(4)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "encode: 160 of 1,200 (13%), 3/s, 6 min 30 s left",
        "encode: 320 of 1,200 (27%), 3/s, 5 min 30 s left",
    ]


def test_short_pieces_of_long_work_speak_too(clock, capsys):
    for number in range(10):
        with progress.progress_bar(f"task {number}", 1) as advance:
            clock[0] += 20
            advance()
    assert re.findall(r"^task \d", capsys.readouterr().err, re.M) == ["task 2", "task 5", "task 8"]


def test_a_bar_over_more_work_is_told_instead(clock, capsys):
    with (
        progress.progress_bar("all", 8) as over_all,
        progress.progress_bar("a piece", 2, show=over_all) as advance,
    ):
        clock[0] += 61
        advance(2)
    assert capsys.readouterr().err == "all: 2 of 8 (25%), 0/s, 3 min 3 s left\n"


def test_nothing_is_shown_where_that_is_asked_for(clock, capsys):
    with progress.progress_bar("encode", 0, show=False) as advance:
        clock[0] += 100
        advance()
    assert capsys.readouterr().err == ""


def test_a_bar_is_shown_where_that_is_asked_for(capsys):
    with progress.progress_bar("encode", 2, show=True) as advance:
        advance(2)
    assert "encode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0, "0 min 0 s"), (61.4, "1 min 1 s"), (7260.0, "2 h 1 min")]
)
def test_durations_are_short(seconds, told):
    assert progress.duration(seconds) == told
