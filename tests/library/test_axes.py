"""Laws of the sharding table and of meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from prompteol_jax import axes

SIZES = dict(N=4, K=2, F=176)


@pytest.mark.parametrize(
    ("text", "shape"), [("1x1", (1, 1)), ("4x2", (4, 2)), (" 16x1\n", (16, 1)), ("256x8", (256, 8))]
)
def test_a_mesh_is_read_as_data_by_model(text, shape):
    assert axes.parse_mesh(text) == shape


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "0x4", "4x0", "4*2", "4x2x1", "-1x2", "4 x 2", "axb"]
)
def test_refuses_what_is_no_mesh(text):
    with pytest.raises(ValueError, match="is not DATAxMODEL, two whole numbers from 1 up"):
        axes.parse_mesh(text)


def test_a_mesh_has_the_first_devices_and_axes_that_constraints_apply_to():
    mesh = axes.make_mesh((2, 2))
    assert mesh.shape == {"data": 2, "model": 2}
    assert mesh.devices.ravel().tolist() == jax.devices()[:4]
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_refuses_a_mesh_of_more_devices_than_there_are():
    with pytest.raises(
        ValueError, match=r"4x4 needs 16 devices, found 8 \(cpu\)\. Use 8x1, 4x2, 2x4, 1x8"
    ):
        axes.make_mesh((4, 4))


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ("BTD", (8, 5, 64), ("data", None, None)),
        ("BTNH", (8, 5, 4, 16), ("data", None, "model", None)),
        ("BTNH", (8, 5, 3, 16), ("data", None, None, None)),  # 3 heads stay whole
        ("BTKH", (7, 5, 2, 16), (None, None, "model", None)),  # 7 rows stay whole
        ("NHD", (4, 16, 64), ("model", None, None)),
        ("LNHD", (3, 4, 16, 64), (None, "model", None, None)),
        ("FD", (176, 64), ("model", None)),
        ("DF", (64, 176), (None, "model")),
        ("VE", (50272, 32), ("model", None)),
        ("NH", (4, 16), ("model", None)),
        ("LNH", (3, 4, 16), (None, "model", None)),
        ("NK", (4, 2), ("model", None)),  # one mesh axis, one letter
        ("B", (8,), ("data",)),
        ("F", (176,), (None,)),  # vectors stay whole
        ("LF", (3, 176), (None, None)),
        ("D", (64,), (None,)),
        ("PD", (2050, 64), (None, None)),
        ("LRD", (3, 64, 64), (None, None, None)),
    ],
)
def test_every_letter_goes_to_its_axis_of_the_mesh(dims, shape, expected):
    mesh = axes.make_mesh((4, 2))
    assert axes.spec(dims, shape, mesh) == PartitionSpec(*expected)


def test_fsdp_also_cuts_the_residual_width():
    mesh = axes.make_mesh((4, 2))
    assert axes.spec("NHD", (4, 16, 64), mesh, axes.FSDP_RULES) == PartitionSpec(
        "model", None, "data"
    )
    assert axes.spec("D", (64,), mesh, axes.FSDP_RULES) == PartitionSpec(None)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 1)])
def test_accepts_meshes_that_the_model_can_be_cut_to(shape):
    axes.check_mesh(SIZES, shape, batch=8)


def test_refuses_a_misfit_with_every_letter_and_the_meshes_that_fit():
    with pytest.raises(ValueError) as caught:
        axes.check_mesh(dict(N=6, K=4, F=20), (2, 6), batch=9)
    assert str(caught.value) == (
        "mesh 2x6 does not fit: F = 20 (feed-forward width) is not a multiple of model = 6; "
        "K = 4 (key/value heads) and model = 6 do not divide each other; "
        "B = 9 (batch) is not a multiple of data = 2. No mesh of 12 devices fits; 1x1 always does."
    )
    with pytest.raises(ValueError, match=r"Meshes of 8 devices that fit: 8x1, 4x2, 2x4\.$"):
        axes.check_mesh(SIZES, (1, 8))


@pytest.mark.parametrize("batch", [None, 8, 12])
@pytest.mark.parametrize("sizes", [SIZES, dict(N=12, F=3072), dict(N=6, K=3, F=24)])
def test_the_meshes_that_an_error_names_are_those_that_are_accepted(sizes, batch):
    shapes = [(8, 1), (4, 2), (2, 4), (1, 8)]
    refused = {}
    for shape in shapes:
        try:
            axes.check_mesh(sizes, shape, batch=batch)
        except ValueError as error:
            refused[shape] = str(error)
    fits = [f"{d}x{m}" for d, m in shapes if (d, m) not in refused]
    advice = f"that fit: {', '.join(fits)}." if fits else "No mesh of 8 devices fits"
    assert refused
    assert all(advice in error for error in refused.values())


def test_an_activation_is_pinned_under_a_mesh_and_left_alone_without_one():
    x = jnp.zeros((8, 5, 4, 16))
    assert axes.constrain(x, "BTNH") is x
    mesh = axes.make_mesh((4, 2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: axes.constrain(x, "BTNH"))(x)
    assert y.sharding.is_equivalent_to(axes.sharding("BTNH", x.shape, mesh), x.ndim)


@pytest.mark.parametrize(
    ("mesh", "heads", "expected"),
    [
        ((2, 4), 2, [0, 0, 1, 1]),  # one copy for each of four devices
        ((4, 2), 2, [0, 1]),
        ((8, 1), 2, [0, 1]),
        ((1, 8), 1, [0] * 8),
        ((2, 4), 3, [0, 1, 2]),  # divides nothing: whole everywhere
    ],
)
@pytest.mark.parametrize("lead", [(5,), (8, 5)], ids=["prefix", "rows"])
def test_heads_fewer_than_the_model_axis_are_repeated_in_groups(mesh, heads, expected, lead):
    number = jnp.broadcast_to(jnp.arange(heads)[:, None], (*lead, heads, 3))
    with jax.set_mesh(axes.make_mesh(mesh)):
        spread = jax.jit(axes.repeat_kv)(number)
    assert np.asarray(spread)[(0,) * len(lead)][:, 0].tolist() == expected


def test_the_mesh_in_context_names_the_platform():
    assert axes.platform() == jax.default_backend()
    with jax.set_mesh(axes.make_mesh((4, 2))):
        assert axes.platform() == "cpu"
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1, 1), axes.AXES, abstract_device=device)
    ):
        assert axes.platform() == "tpu"


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ("RD", (64, 32), (None, ("data", "model"))),  # the rank comes last
        ("LRD", (8, 64, 6), (None, ("data",), ("model",))),  # never over layers
        ("FR", (48, 64), (("model", "data"), None)),  # the axis that the table cuts comes first
        ("RD", (3, 5), (None, None)),  # nothing that the mesh divides
    ],
)
def test_what_is_gathered_for_its_use_lies_spread_over_all_devices(dims, shape, expected):
    assert axes.spread(dims, shape, axes.make_mesh((4, 2))).spec == jax.P(*expected)
