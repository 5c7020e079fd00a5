"""Every fault of the first version has a test that holds the right behavior, or a reason."""

from __future__ import annotations

import re

import pytest
from source import ROOT

pytestmark = pytest.mark.unit

PAGE = ROOT / "tests" / "support" / "closed_faults.md"


def rows() -> list[tuple[str, str]]:
    found = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in found if row[0] not in ("fault", "report", "---")]


def missing(closed_by: str) -> list[str]:
    """The tests and files that a row names and that are not there."""
    gone = []
    for name in re.findall(r"`([\w/.]+\.py(?:::\w+)?)`", closed_by):
        path, _, test = name.partition("::")
        file = ROOT / "tests" / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not text or (test and f"\ndef {test}(" not in text):
            gone.append(name)
    return gone


def test_every_named_test_exists():
    assert len(rows()) > 60
    assert [name for _, closed_by in rows() for name in missing(closed_by)] == []


def test_every_fault_has_a_test_or_a_reason():
    bare = [fault for fault, by in rows() if "::test_" not in by and not by.startswith("By design")]
    assert bare == []


def test_a_test_that_is_gone_is_found():
    assert missing("`laws/test_faults.py::test_gone` `laws/gone.py`") == [
        "laws/test_faults.py::test_gone",
        "laws/gone.py",
    ]
