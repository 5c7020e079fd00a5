"""What a process may use of its devices."""

import jax

from prompteol_jax import runtime


def test_simulated_devices_share_the_machines_memory():
    whole = runtime.device_memory() * len(jax.local_devices())
    assert 2**30 < whole < 2**44
