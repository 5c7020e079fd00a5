"""Meshes: read, made, checked against a model; and what depends on the mesh in context.

The mesh in context is the one set by `jax.set_mesh`; without one every function here is as on one
device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from prompteol_jax import runtime
from prompteol_jax.axes import MESH_AXES, fsdp_sharding, spec
from prompteol_jax.errors import UserError


def parse_mesh(text: str) -> tuple[int, int]:
    """Read `"4x2"` as 4 devices along data times 2 along model.

    Raises: UserError where the text has another form or a size below 1.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    data, model = (int(n) for n in match.groups()) if match else (0, 0)
    if min(data, model) < 1:
        raise UserError(
            f"mesh {text!r} is not DATAxMODEL, two whole numbers from 1 up: try 1x1, 8x1 or 4x2"
        )
    return data, model


def make_mesh(shape: tuple[int, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh of the first `data * model` devices.

    Args:
        devices: devices to choose from, by default all that jax finds, of all processes.
    Raises: UserError where there are fewer devices; the message names meshes that would fit.
    """
    data, model = shape
    devices = jax.devices() if devices is None else devices
    have = len(devices)
    if data * model > have:
        fits = ", ".join(f"{have // m}x{m}" for m in _divisors(have))
        raise UserError(
            f"mesh {data}x{model} needs {data * model} devices, found {have} "
            f"({devices[0].device_kind}). Use {fits}, or more devices."
        )
    types = (AxisType.Auto,) * 2
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices[: data * model])


def as_mesh(mesh: str | Mesh) -> Mesh:
    """Return a mesh given by itself or as DATAxMODEL; a CPU simulates the devices it lacks."""
    if not isinstance(mesh, str):
        return mesh
    shape = parse_mesh(mesh)
    runtime.simulate_devices(shape[0] * shape[1])
    return make_mesh(shape)


def check_mesh(
    sizes: Mapping[str, int], shape: tuple[int, int], *, batch: int | None = None
) -> None:
    """Refuse a mesh over which the model or the batch cannot be sharded.

    Key/value heads fewer than the model axis are replicated in groups: it is enough that one of
    the two numbers divides the other.

    Raises: UserError that lists every misfit and names meshes of as many devices that would fit.
    """
    misfits = _misfits(sizes, shape, batch)
    if not misfits:
        return
    devices = shape[0] * shape[1]
    fits = [f"{d}x{m}" for d, m in fitting_meshes(sizes, devices, batch=batch)]
    advice = (
        f"Meshes of {devices} devices that fit: {', '.join(fits)}."
        if fits
        else (f"No mesh of {devices} devices fits; 1x1 always does.")
    )
    raise UserError(f"mesh {shape[0]}x{shape[1]} does not fit: {'; '.join(misfits)}. {advice}")


def fitting_meshes(
    sizes: Mapping[str, int], devices: int, *, batch: int | None = None
) -> list[tuple[int, int]]:
    """Return the meshes of so many devices over which the model and the batch can be sharded."""
    meshes = [(devices // model, model) for model in _divisors(devices)]
    return [mesh for mesh in meshes if not _misfits(sizes, mesh, batch)]


def _misfits(sizes: Mapping[str, int], shape: tuple[int, int], batch: int | None) -> list[str]:
    data, model = shape
    found = [
        f"{letter} = {sizes[letter]} ({meaning}) is not a multiple of model = {model}"
        for letter, meaning in (("N", "query heads"), ("F", "feed-forward width"))
        if sizes[letter] % model
    ]
    heads = sizes.get("K", sizes["N"])
    if heads % model and model % heads:
        found.append(f"K = {heads} (key/value heads) and model = {model} do not divide each other")
    if batch is not None and batch % data:
        found.append(f"B = {batch} (batch) is not a multiple of data = {data}")
    return found


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def axis_size(axis: str) -> int:
    """Return the devices along an axis of the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def is_sharded() -> bool:
    """Return whether the mesh in context has several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def constrain(x: jax.Array, dims: str) -> jax.Array:
    """Pin an activation to the layout of the sharding table under the mesh in context."""
    if not is_sharded():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, spec(dims, x.shape, mesh))


@lambda function: jax.custom_vjp(function, nondiff_argnums=(1,))
def gathered(x: jax.Array, dims: str) -> jax.Array:
    """Return a parameter of layout `fsdp_sharding` in the layout of the sharding table.

    Its gradient is reduce-scattered along data. If the gradient were sharded over `model` as well,
    XLA would propagate that to activations and add all-gathers.
    """
    return constrain(x, dims)


def _gathered_backward(dims: str, _: None, dy: jax.Array) -> tuple[jax.Array]:
    if not is_sharded():
        return (dy,)
    mesh = jax.sharding.get_abstract_mesh()
    layout = fsdp_sharding(dims, dy.shape, mesh, over=("data",))
    return (jax.lax.with_sharding_constraint(dy, layout.spec),)


gathered.defvjp(lambda x, dims: (gathered(x, dims), None), _gathered_backward)


def on_each_device(call: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
    """Return a call, of a kernel for one, that every device runs over its own shard.

    Args:
        inputs: partition specs of the arguments; outputs: those of the results.
    """
    if not is_sharded():
        return call
    return jax.shard_map(call, in_specs=inputs, out_specs=outputs, check_vma=False)
