"""The law that a test of `make test` is fast: it takes few seconds of processor time.

Processor time, since other work on the machine must not make a test fail. A test that imports
torch, transformers and the like for the whole process is not charged for it. `make test` ends with
the tests that took longest.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

LIMIT = 60.0  # processor seconds: whichever test comes first compiles what others share
_IMPORTS = 200  # modules; a test that brings more is not held to the limit
_SHOWN = 10
_times: dict[str, float] = {}


def _spent() -> float:
    """Return processor seconds of this process and its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Time the body of a test; fixtures, which others share, are not counted."""
    modules, start = len(sys.modules), _spent()
    outcome: Any = yield
    seconds = _spent() - start
    item.user_properties.append(("processor seconds", round(seconds, 2)))
    is_held = "not slow" in item.config.option.markexpr
    is_exempt = len(sys.modules) - modules > _IMPORTS
    if is_held and not is_exempt and seconds > LIMIT and outcome.excinfo is None:
        message = f"took {seconds:.1f} s of processor time, more than {LIMIT:.0f}: mark it slow"
        outcome.force_exception(pytest.fail.Exception(message))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the times in the process that reports."""
    if report.when == "call":
        _times[report.nodeid] = dict(report.user_properties).get("processor seconds", 0.0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the tests that took longest."""
    longest = sorted(_times.items(), key=lambda entry: -entry[1])[:_SHOWN]
    if len(_times) > _SHOWN:
        terminalreporter.section("most processor seconds")
        for name, seconds in longest:
            terminalreporter.line(f"{seconds:6.1f}  {name}")
