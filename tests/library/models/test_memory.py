"""What weights take of a device is known from shapes."""

import jax.numpy as jnp
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build, tiny
from prompteol_jax.models.memory import choose_fsdp, device_bytes

HOW = {"dtype": jnp.bfloat16}


def of(shape, **how):
    return device_bytes(build.abstract_decoder(tiny.CONFIG, make_mesh(shape), **HOW, **how))


def test_bytes_of_a_device_are_those_of_its_shards():
    whole, sharded = of((4, 1)), of((4, 1), fsdp=True)
    c = tiny.CONFIG
    matrices = 2 * c.L * (4 * c.D * c.D + 2 * c.D * c.F)  # bytes
    assert whole == of((1, 1))
    tables = 2 * c.D * (c.V + c.sizes["P"])
    assert whole - sharded == (matrices + tables) * 3 // 4


@pytest.mark.parametrize(
    ("shape", "copies", "room", "chosen"),
    [((4, 1), 1, 0, False), ((4, 1), 1, -1, True), ((4, 1), 4, 0, True), ((1, 4), 1, -1, False)],
)
def test_fsdp_is_for_weights_that_do_not_fit_and_a_data_axis(shape, copies, room, chosen, caplog):
    memory = of(shape) + room
    found = choose_fsdp(tiny.CONFIG, make_mesh(shape), memory, copies=copies, **HOW)
    assert found == chosen == ("which is chosen" in caplog.text)
    assert ("gradients and moments" in caplog.text) == (chosen and copies > 1)
