"""A launch that cannot work is refused before it costs anything."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_all_that_is_wrong_comes_in_one_line():
    flags = ["v5e", "--zone", "z", "--spot", "--poll-s", "0", "--fetch-to", "nowhere"]
    done = subprocess.run(
        [sys.executable, "-m", "tpu.launch", *flags, "--", "python", "-m", "train.contrastive"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in (
        "slice 'v5e' is none of",
        "--output gs://",
        "--poll-s 0.0 must be above 0",
        "--fetch-to nowhere",
    ):
        assert part in done.stderr
