"""The platform of traced code. Only `ops/` and `runtime.py` ask for it."""

from __future__ import annotations

import jax
from jax.sharding import Mesh


def current() -> str:
    """Return what the traced code will run on: `cpu`, `gpu` or `tpu`.

    The mesh in context decides; without one it is jax's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def kind() -> str:
    """Return the kind of device that the traced code will run on, such as `TPU v5 lite`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def of(mesh: Mesh) -> str:
    """Return the platform of a mesh's devices, described ones included."""
    return mesh.devices.flat[0].platform
