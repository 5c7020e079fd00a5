"""Laws of meshes."""

import jax
import jax.numpy as jnp
import pytest

from prompteol_jax import axes
from prompteol_jax.mesh import check_mesh, constrain, make_mesh, parse_mesh

SIZES = dict(N=4, K=2, F=176)


@pytest.mark.parametrize(
    ("text", "shape"), [("1x1", (1, 1)), ("4x2", (4, 2)), (" 16x1\n", (16, 1)), ("256x8", (256, 8))]
)
def test_a_mesh_is_read_as_data_by_model(text, shape):
    assert parse_mesh(text) == shape


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "0x4", "4x0", "4*2", "4x2x1", "-1x2", "4 x 2", "axb"]
)
def test_refuses_what_is_no_mesh(text):
    with pytest.raises(ValueError, match="is not DATAxMODEL, two whole numbers from 1 up"):
        parse_mesh(text)


def test_a_mesh_has_the_first_devices_and_axes_that_constraints_apply_to():
    mesh = make_mesh((2, 2))
    assert mesh.shape == {"data": 2, "model": 2}
    assert mesh.devices.ravel().tolist() == jax.devices()[:4]
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_refuses_a_mesh_of_more_devices_than_there_are():
    with pytest.raises(
        ValueError, match=r"4x4 needs 16 devices, found 8 \(cpu\)\. Use 8x1, 4x2, 2x4, 1x8"
    ):
        make_mesh((4, 4))


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 1)])
def test_accepts_meshes_that_the_model_can_be_cut_to(shape):
    check_mesh(SIZES, shape, batch=8)


def test_refuses_a_misfit_with_every_letter_and_the_meshes_that_fit():
    with pytest.raises(ValueError) as caught:
        check_mesh(dict(N=6, K=4, F=20), (2, 6), batch=9)
    assert str(caught.value) == (
        "mesh 2x6 does not fit: F = 20 (feed-forward width) is not a multiple of model = 6; "
        "K = 4 (key/value heads) and model = 6 do not divide each other; "
        "B = 9 (batch) is not a multiple of data = 2. No mesh of 12 devices fits; 1x1 always does."
    )
    with pytest.raises(ValueError, match=r"Meshes of 8 devices that fit: 8x1, 4x2, 2x4\.$"):
        check_mesh(SIZES, (1, 8))


@pytest.mark.parametrize("batch", [None, 8, 12])
@pytest.mark.parametrize("sizes", [SIZES, dict(N=12, F=3072), dict(N=6, K=3, F=24)])
def test_the_meshes_that_an_error_names_are_those_that_are_accepted(sizes, batch):
    shapes = [(8, 1), (4, 2), (2, 4), (1, 8)]
    refused = {}
    for shape in shapes:
        try:
            check_mesh(sizes, shape, batch=batch)
        except ValueError as error:
            refused[shape] = str(error)
    fits = [f"{d}x{m}" for d, m in shapes if (d, m) not in refused]
    advice = f"that fit: {', '.join(fits)}." if fits else "No mesh of 8 devices fits"
    assert refused
    assert all(advice in error for error in refused.values())


def test_an_activation_is_pinned_under_a_mesh_and_left_alone_without_one():
    x = jnp.zeros((8, 5, 4, 16))
    assert constrain(x, "BTNH") is x
    mesh = make_mesh((4, 2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, "BTNH"))(x)
    assert y.sharding.is_equivalent_to(axes.sharding("BTNH", x.shape, mesh), x.ndim)
