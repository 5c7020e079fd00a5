"""The first version's numbers hold: vectors, scores, losses, an adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "golden.py"


@pytest.mark.huge
def test_this_code_computes_what_the_first_version_computed(data, tmp_path):
    found = tmp_path / "golden.npz"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, SCRIPT, "write", found], check=True, env=environment)
    command = [sys.executable, SCRIPT, "compare", SCRIPT.with_suffix(".npz"), found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
