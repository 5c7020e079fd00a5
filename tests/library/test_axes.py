"""Laws of the sharding table."""

import logging

import pytest
from jax.sharding import PartitionSpec

from prompteol_jax import axes
from prompteol_jax.mesh import make_mesh


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ("BTD", (8, 5, 64), ("data", None, None)),
        ("BTNH", (8, 5, 4, 16), ("data", None, "model", None)),
        ("BTKH", (7, 5, 2, 16), (None, None, "model", None)),  # 7 rows are replicated
        ("NHD", (4, 16, 64), ("model", None, None)),
        ("LNHD", (3, 4, 16, 64), (None, "model", None, None)),
        ("FD", (176, 64), ("model", None)),
        ("DF", (64, 176), (None, "model")),
        ("VE", (50272, 32), ("model", None)),
        ("NH", (4, 16), ("model", None)),
        ("LNH", (3, 4, 16), (None, "model", None)),
        ("NK", (4, 2), ("model", None)),  # one mesh axis, one letter
        ("B", (8,), ("data",)),
        ("F", (176,), (None,)),  # vectors are replicated
        ("LF", (3, 176), (None, None)),
        ("D", (64,), (None,)),
        ("PD", (2050, 64), (None, None)),
        ("LRD", (3, 64, 64), (None, None, None)),
    ],
)
def test_every_letter_goes_to_its_axis_of_the_mesh(dims, shape, expected):
    mesh = make_mesh((4, 2))
    assert axes.spec(dims, shape, mesh) == PartitionSpec(*expected)


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ("RD", (64, 32), (None, ("data", "model"))),  # the rank comes last
        ("LRD", (8, 64, 6), (None, ("data",), ("model",))),  # never layers
        ("FR", (48, 64), (("model", "data"), None)),  # the axis of the sharding table comes first
        ("RD", (3, 5), (None, None)),  # nothing that the mesh divides
    ],
)
def test_a_fully_sharded_parameter_is_sharded_over_all_devices(dims, shape, expected):
    assert axes.fsdp_sharding(dims, shape, make_mesh((4, 2))).spec == PartitionSpec(*expected)


def test_an_axis_that_does_not_divide_is_refused_or_logged_never_dropped_in_silence(caplog):
    mesh = make_mesh((4, 2))
    for dims, shape in (("NHD", (3, 16, 64)), ("FD", (175, 64)), ("BQI", (4, 1, 63))):
        with pytest.raises(ValueError, match=r"is not a multiple of model = 2; `mesh.check_mesh`"):
            axes.spec(dims, shape, mesh)
    caplog.set_level(logging.INFO, "prompteol_jax")
    axes._log_replicated.cache_clear()
    for _ in range(2):
        assert axes.spec("VD", (50257, 64), mesh) == PartitionSpec(None, None)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["V = 50257 is not a multiple of model = 2: replicated"]
