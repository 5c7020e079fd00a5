"""A second process starts fast: nothing is compiled that a first one compiled."""

import os
import subprocess
import sys

import pytest

from tpu.random_checkpoint import write_random_checkpoint

_CODE = """
import sys, time
start = time.process_time()
from prompteol_jax import Embedder
Embedder.from_pretrained(sys.argv[1]).encode(["A man is playing a guitar."])
print(time.process_time() - start)
"""


@pytest.mark.slow
def test_the_first_vector_of_a_second_process_comes_soon(tmp_path, data):
    """Four seconds on two idle cores; docs/explain/performance.md has what was measured.

    Here the bound is looser, eight seconds of processor time: other tests keep the machine busy.
    """
    folder = tmp_path / "opt-125m"
    tokenizer = data / "weights" / "opt-tokenizer"
    write_random_checkpoint("opt-125m", folder, tokenizer, dtype="float32")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", _CODE, folder], env=environment))
        for _ in range(3)
    ]
    assert min(seconds[1:]) < min(8, seconds[0]), seconds
