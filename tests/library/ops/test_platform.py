"""The platform of traced code."""

import jax

from prompteol_jax import axes
from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import platform


def test_the_mesh_in_context_names_the_platform():
    assert platform.current() == jax.default_backend()
    with jax.set_mesh(make_mesh((4, 2))):
        assert platform.current() == "cpu"
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1, 1), axes.MESH_AXES, abstract_device=device)
    ):
        assert platform.current() == "tpu"
        assert platform.of(make_mesh((1, 1))) == "cpu"
