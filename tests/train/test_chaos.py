"""The law of survival: killed and damaged runs end as undisturbed ones, or refuse by name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills", "damages"),
    [("contrastive", 8, 3), ("fsdp", 3, 1), ("two-sources", 3, 1), ("align", 3, 1)],
)
def test_killed_and_damaged_runs_end_as_undisturbed_ones_or_refuse(kind, kills, damages):
    script = Path(__file__).parents[1] / "support" / "chaos.py"
    flags = ["--kinds", kind, "--kills", str(kills), "--damages", str(damages)]
    command = [sys.executable, str(script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "all as undisturbed" in done.stdout
    told = {what: int(n) for n, what in re.findall(r"(\d+) ([a-z ]+)", done.stdout)}
    assert told["kills"] >= kills
    assert told["damages"] >= damages
