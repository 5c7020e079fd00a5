"""The alphabet of axes, and where each of them lies on a mesh.

One letter means the same everywhere: in config fields, in the names of arrays (`x_BTD`), in einsum
equations (`"BTD,NHD->BTNH"`), in annotations, in the weight tables and in the sharding table below.

    B  sentences or rows of a batch        V  vocabulary
    T  tokens in a row                     L  decoder layers
    C  cached tokens of a shared prefix    R  LoRA rank
    D  residual width                      E  OPT word-embedding width where it is not D
    N  query heads                         P  learned positions, or the longest prompt
    K  key/value heads                     S  sentences that end in a row
    H  head width                          A  alternatives scored per anchor
    F  feed-forward width                  G  query heads per key/value head
    Q  queries of one attention call       I  query heads joined, N x H; J  key/value heads, K x H

A mesh has two axes: `data` cuts the batch, `model` cuts heads, feed-forward width, vocabulary and
alternatives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from prompteol_jax.errors import UserError

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {"B": "data", **dict.fromkeys("NKIJFVA", "model")}
)
FSDP_RULES: Final[Mapping[str, str]] = MappingProxyType({**RULES, "D": "data"})
AXES: Final = ("data", "model")


def parse_mesh(text: str) -> tuple[int, int]:
    """Read `"4x2"` as 4 devices along data times 2 along model.

    Raises: UserError where the text has another form or a size below 1.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    sizes = tuple(int(n) for n in match.groups()) if match else (0, 0)
    if min(sizes) < 1:
        raise UserError(
            f"mesh {text!r} is not DATAxMODEL, two whole numbers from 1 up: try 1x1, 8x1 or 4x2"
        )
    return sizes


def make_mesh(shape: tuple[int, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lay the first `data * model` devices out as a mesh.

    Args:
        devices: those to choose from, by default all that jax finds, of all processes.
    Raises: UserError where there are fewer devices; the message names meshes that would fit.
    """
    data, model = shape
    devices = jax.devices() if devices is None else devices
    have = len(devices)
    if data * model > have:
        fits = ", ".join(f"{have // m}x{m}" for m in _divisors(have))
        raise UserError(
            f"mesh {data}x{model} needs {data * model} devices, found {have} "
            f"({devices[0].platform}). Use {fits}, or more devices."
        )
    types = (AxisType.Auto,) * 2
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices[: data * model])


def check_mesh(
    sizes: Mapping[str, int], shape: tuple[int, int], *, batch: int | None = None
) -> None:
    """Refuse a mesh that the model or the batch cannot be cut to.

    Key/value heads fewer than the model axis are replicated in groups, so there it is enough that
    one divides the other.

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
    """The meshes of so many devices that the model and the batch can be cut to."""
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


def spec(
    dims: str,
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, str] = RULES,
) -> PartitionSpec:
    """Give every letter of `dims` its mesh axis, from the left.

    An axis that its mesh axis does not divide stays whole, and so does a vector: cutting it would
    save nothing. A mesh axis is given once.
    """
    taken: list[str | None] = []
    for letter, size in zip(dims, shape, strict=True):
        axis = rules.get(letter)
        fits = axis is not None and size % mesh.shape[axis] == 0 and axis not in taken
        taken.append(axis if fits else None)
    if len(dims.lstrip("L")) == 1 and dims != "B":
        return PartitionSpec(*[None] * len(dims))
    return PartitionSpec(*taken)


def sharding(
    dims: str, shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, str] = RULES
) -> NamedSharding:
    """Say where an array of these axes lives on the mesh."""
    return NamedSharding(mesh, spec(dims, shape, mesh, rules))


def spread(
    dims: str,
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, str] = RULES,
    over: Sequence[str] = AXES,
) -> NamedSharding:
    """Where an array lies that is only gathered to the layout of `sharding` when it is used.

    Mesh axes of `over` that this leaves free cut its first axis that they divide, a rank comes
    last; layers are not cut.
    """
    taken = [axis if axis else () for axis in spec(dims, shape, mesh, rules)]
    cut = dict(
        zip(dims, ((axis,) if isinstance(axis, str) else axis for axis in taken), strict=True)
    )
    for axis in over:
        if axis in (used for axes in cut.values() for used in axes):
            continue
        for letter in sorted(dims.lstrip("L"), key=lambda c: c == "R"):
            if (
                shape[dims.index(letter)] % math.prod(mesh.shape[a] for a in (*cut[letter], axis))
                == 0
            ):
                cut[letter] += (axis,)
                break
    return NamedSharding(mesh, PartitionSpec(*(cut[letter] or None for letter in dims)))


def platform() -> str:
    """Name what the traced code will run on, `cpu`, `gpu` or `tpu`: the mesh in context decides.

    Without a mesh in context it is jax's default.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_each_device(call: Callable[..., Any], places: Any, outs: Any) -> Callable[..., Any]:
    """Let every device of the mesh in context run a call, a kernel for one, over its own part.

    Args:
        places: how the arguments are cut; outs: how the results are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return call
    return jax.shard_map(call, in_specs=places, out_specs=outs, check_vma=False)


def data_parts() -> int:
    """Parts that rows are cut into under the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"]


def constrain(x: jax.Array, dims: str) -> jax.Array:
    """Pin an activation to the layout of the table, under the mesh set by `jax.set_mesh`.

    Without a mesh in context this is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(dims, x.shape, mesh))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(x: jax.Array, dims: str) -> jax.Array:
    """A parameter that `spread` lays out, in the layout of the table: gathered.

    Its gradient goes the other way: along data, devices add up each only the part that it holds.
    Over the model axis too, activations would be cut after its example, and gathered everywhere.
    """
    return constrain(x, dims)


def _whole_backward(dims: str, _: None, dy: jax.Array) -> tuple[jax.Array]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return (dy,)
    place = spread(dims, dy.shape, mesh, over=("data",))
    return (jax.lax.with_sharding_constraint(dy, place.spec),)


whole.defvjp(lambda x, dims: (whole(x, dims), None), _whole_backward)


def repeat_kv(x: jax.Array) -> jax.Array:
    """Repeat the heads of `[..., K, H]` where K is less than the model axis.

    Groups of devices then hold the head that their queries need, and only that.
    """
    mesh = jax.sharding.get_abstract_mesh()
    model = 1 if mesh.empty else mesh.shape["model"]
    heads = x.shape[-2]
    if model <= heads or model % heads:
        return x
    dims = "BTKH" if x.ndim == 4 else "CKH"
    return constrain(jnp.repeat(x, model // heads, axis=-2), dims)
