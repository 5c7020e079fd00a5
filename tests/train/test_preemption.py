"""Laws of the agreement: the first SIGTERM is noticed, the second ends; minutes run from a save."""

import os
import signal
import subprocess
import sys

import pytest

from train import preemption
from train.preemption import Signals, StopAgreement


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


def test_a_quiet_run_goes_on():
    with StopAgreement(None) as quiet:
        assert [quiet.agree(writing=False) for _ in range(3)] == [Signals(False, False, False)] * 3


def test_a_save_is_due_when_its_minutes_are_over(clock):
    timed = StopAgreement(0.5)
    clock[0] += 29
    assert timed.agree(writing=False) == Signals(False, False, False)
    clock[0] += 1
    assert timed.agree(writing=False) == Signals(False, True, False)
    timed.saved()
    assert timed.agree(writing=False) == Signals(False, False, False)
    clock[0] += 31
    assert timed.agree(writing=False) == Signals(False, True, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed_and_the_former_handlers_come_back(number):
    both = (signal.SIGTERM, signal.SIGINT)
    former = [signal.getsignal(each) for each in both]
    with StopAgreement(None) as told:
        assert not {*map(signal.getsignal, both)} & {*former}
        os.kill(os.getpid(), number)
        assert told.agree(writing=False) == Signals(True, False, False)
        assert [signal.getsignal(each) for each in both] == former
    assert [signal.getsignal(each) for each in both] == former


def test_a_second_sigterm_ends_the_process():
    code = (
        "import os, signal\n"
        "from train.preemption import StopAgreement\n"
        "with StopAgreement(None) as told:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert told.agree(writing=False).stop\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_what_one_process_is_told_all_of_them_do(monkeypatch, clock):
    """The first process's clock counts for all."""
    timed = StopAgreement(1.0)
    clock[0] += 61
    monkeypatch.setattr(timed._channel, "exchange", lambda _: [[False] * 3, [True] * 3])
    assert timed.agree(writing=False) == Signals(True, False, True)
