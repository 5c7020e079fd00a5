"""Laws of torch_sum: to the bit the mean of torch on one thread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prompteol_jax.quant.torch_sum import torch_mean


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sum depends on how many share it
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [1, 7, 31, 33, 512, 1000, 5000, 32768, 262144, 704512, 1000003])
def test_the_mean_is_that_of_torch(size):
    x = np.abs(np.random.default_rng(size).normal(size=size)).astype(np.float32)
    assert torch_mean(x) == torch.tensor(x).mean().numpy()
