"""A law of long texts: memory for one grows with its length, and not with the square of it."""

import subprocess
import sys

import pytest

MEASURE = """
import resource
import jax, numpy as np
from prompteol_jax.encoding.layerwise import LayerwiseRunner
from prompteol_jax.encoding.runners import Reading
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import initial
from prompteol_jax.models.decoder import Rows
from prompteol_jax.models.llama import LlamaConfig

config = LlamaConfig(L=2, D=64, N=8, F=128, V=60, P=4096, K=8, H=8)
model = initial.random_decoder(config, make_mesh((1, 1)), jax.random.key(0), dtype="float32")
runner = LayerwiseRunner(model)

def encode(T, tokens):
    rows = Rows(np.zeros((1, T), np.int32), np.array([[tokens - 1]], np.int32))
    return np.asarray(runner.encode(rows, None, Reading()))

encode(512, 400)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encode(4096, 3341)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_3341_tokens_and_8_heads_need_less_than_a_fifth_of_a_gibibyte():
    words = [sys.executable, "-c", MEASURE]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 2**20 < 0.2
