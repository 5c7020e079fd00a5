"""The law of survival: killed and damaged runs end as undisturbed ones, or refuse by name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_and_damaged_runs_end_as_undisturbed_ones_or_refuse():
    script = Path(__file__).parents[1] / "support" / "chaos.py"
    command = [sys.executable, str(script), "--kills", "8", "--damages", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "all as undisturbed" in done.stdout
    told = {what: int(n) for n, what in re.findall(r"(\d+) ([a-z ]+)", done.stdout)}
    assert told["kills"] >= 8
    assert told["damages"] >= 3
