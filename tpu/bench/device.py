"""How fast a device can be, and what a run took of it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import jax
import jax.numpy as jnp

from prompteol_jax import runtime
from prompteol_jax.ops import einsum
from tpu.chips import chip_of

_SIDES: Final = {"cpu": (512, 1024, 2048), "other": (2048, 4096, 8192, 16384)}
_SECONDS: Final = 0.3  # that a product is repeated for
_COMPILING: Final = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def matrix_rate(dtype: str, devices: int) -> float:
    """Return the best FLOP a second of square products in a dtype, over sizes, on so many devices.

    Simulated devices of a CPU share its cores, so there the rate is that of the machine.
    """

    @jax.jit
    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        # Summed in float32 as a linear layer's: on a CPU other sums have slower kernels.
        return einsum.product("xs,ws->xw", x, y, jnp.float32).astype(x.dtype)

    best = 0.0
    for side in _SIDES["cpu" if runtime.on_cpu() else "other"]:
        x = jnp.full((side, side), 1 / side, jnp.dtype(dtype))
        jax.block_until_ready(product(x, x))
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < _SECONDS:
            jax.block_until_ready([product(x, x) for _ in range(4)])
            products += 4
        best = max(best, 2 * side**3 * products / (time.perf_counter() - start))
    return best * (1 if runtime.on_cpu() else devices)


def chip_peak(device: jax.Device) -> float | None:
    """Return the maker's bfloat16 FLOP a second of a TPU; None for another device."""
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.peak


def peak_bytes() -> tuple[int, str]:
    """Return the peak of memory in bytes and whose it is: the fullest device, else this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    held = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if held and not runtime.on_cpu():
        return max(held), "device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


@contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """Add up what jax spends on lowering and compiling, or on its cache instead."""
    total = 0.0

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal total
        if event in _COMPILING:
            total += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: total
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
