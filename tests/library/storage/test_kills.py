"""The law of same work: what was killed goes on exactly, or is refused by what was changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_was_killed_goes_on_exactly_or_is_refused_by_name():
    script = Path(__file__).parents[2] / "support" / "kills.py"
    command = [sys.executable, str(script), "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "none mixed" in done.stdout
