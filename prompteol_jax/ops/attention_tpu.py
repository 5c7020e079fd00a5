"""Attention of packed rows as one TPU kernel: scores never leave the core.

XLA writes the scores of short rows to HBM and reads them back several times; here a program of the
grid holds one row with some of its heads, and everything between the projections happens inside.
Arrays are kept as XLA's products leave them, tokens last: a head is then a slice of whole tiles,
and scores, keys by queries, have a row's own `start_T` along them. The result is that of
`attention.attend`, rounding apart.

Rotary positions are applied inside as well: turned by XLA, queries and keys pass through HBM in
float32 several times.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from prompteol_jax.mesh import on_each_device
from prompteol_jax.ops import attention_program, layer_slice, scan
from prompteol_jax.ops.attention_program import LANES, Shape
from prompteol_jax.ops.layer_slice import Part, alone, kernel_call

FORWARD: Final = "packed_attention_forward"
BACKWARD: Final = "packed_attention_backward"
Prefix = tuple[Float[Array, "C K H"], Float[Array, "C K H"]]
Angles = tuple[Float[Array, "_ _ h"], Float[Array, "_ _ h"]]


def applies(T: int) -> bool:
    """Say whether the kernel takes rows of T tokens: whole tiles of them."""
    return T % LANES == 0 and T <= 4 * LANES


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    start_BT: Int[Array, "B T"],
    prefix: Prefix | None,
    angles: Angles | None = None,
    *,
    head: int = 0,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attend every token to its own sentence's tokens up to itself, and to the whole prefix.

    On a mesh every device runs the kernel over its own rows and heads.

    Args:
        start_BT: place of the first token of each token's sentence.
        angles: cosines and sines by which queries and keys, not those of the prefix, are turned.
        head: tokens at the head of every row that all its sentences see too.
        interpret: run the kernel's program step by step, on any device.
    """
    call = functools.partial(_local, head=head, interpret=interpret)
    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    part = layer_slice.place(rows)
    own = [q_BTNH, k_BTKH, v_BTKH]
    kept = [scan.kept_in(x) for x in own]
    places = (
        [rows] * 3,
        [p and part for p in kept],
        PartitionSpec("data"),
        None if prefix is None else (heads, heads),
        None if angles is None else (PartitionSpec("data"),) * 2,
    )
    if angles is not None:
        B, T, *_ = q_BTNH.shape
        angles = tuple(jnp.broadcast_to(x, (B, T, x.shape[-1])) for x in angles)
    run = on_each_device(call, places, rows)
    return run(own, kept, start_BT, prefix, angles)


def _local(
    own: list[jax.Array],
    kept: list[Part | None],
    start_BT: jax.Array,
    prefix: Prefix | None,
    angles: Angles | None,
    *,
    head: int,
    interpret: bool,
) -> jax.Array:
    """The kernel over one device's arrays, as `[B, N * H, T]`."""
    q_BTNH, k_BTKH, _ = own
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    C = 0 if prefix is None else prefix[0].shape[0]
    k_CKH, v_CKH = prefix or (jnp.zeros((0, K, H), k_BTKH.dtype),) * 2
    padding = ((0, 0), (0, LANES - C % LANES))

    def in_rows(x: jax.Array) -> jax.Array:
        return x.transpose(0, 2, 3, 1).reshape(B, -1, T)

    kept = [part and part.each(in_rows) for part in kept]
    shared = [jnp.pad(x.reshape(C, K * H).T, padding) for x in (k_CKH, v_CKH)]
    beside = [start_BT[:, None], *(x.swapaxes(1, 2) for x in angles or ())]
    shape = Shape(N, K, H, T, C, head, angles is not None, interpret)
    y = _attend(shape, [in_rows(x) for x in own], kept, beside, *shared)
    return y.reshape(B, N, H, T).transpose(0, 3, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    shape: Shape, own: list, kept: list[Part | None], beside: list, k_C: Any, v_C: Any
) -> jax.Array:
    return kernel_call(
        functools.partial(attention_program.forward, shape),
        _parts(own, kept),
        [*beside, k_C, v_C],
        out_shape=jax.ShapeDtypeStruct(own[0].shape, own[0].dtype),
        in_specs=_specs(shape, k_C.shape[1]),
        out_specs=_specs(shape, k_C.shape[1])[0],
        **_call(shape, own[0], FORWARD),
    )


def _parts(own: list[jax.Array], kept: list[Part | None]) -> list[Part]:
    return [part or alone(x) for x, part in zip(own, kept, strict=True)]


def _attend_forward(
    shape: Shape, own: list, kept: list[Part | None], *operands: Any
) -> tuple[jax.Array, tuple]:
    return _attend(shape, own, kept, *operands), (_parts(own, kept), *operands)


def _attend_backward(shape: Shape, operands: tuple, dy: jax.Array) -> tuple:
    parts, beside, k_C, v_C = operands
    specs = _specs(shape, k_C.shape[1])
    wide = jax.ShapeDtypeStruct(k_C.shape, jnp.float32)
    like = [jax.ShapeDtypeStruct(part.stack.shape[1:], part.stack.dtype) for part in parts]
    *own, dk_C, dv_C = kernel_call(
        functools.partial(attention_program.backward, shape),
        parts,
        [*beside, k_C, v_C, dy],
        out_shape=(*like, wide, wide),
        in_specs=[*specs, specs[0]],
        out_specs=(*specs[:3], *specs[-2:]),
        **_call(shape, like[0], BACKWARD),
    )
    return own, None, None, dk_C.astype(k_C.dtype), dv_C.astype(v_C.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(shape: Shape, q: Any, name: str) -> dict[str, Any]:
    """What both kernels are called with: blocks of heads outside, rows inside.

    The gradient of the prefix is summed over the rows, which then follow one another. What a call
    costs tells XLA which of its arrays to keep in the core's memory.
    """
    B, backward = q.shape[0], name == BACKWARD
    order = ("parallel", "arbitrary" if backward else "parallel")
    heads = (3 * shape.N + 4 * shape.K) if backward else (2 * shape.N + 2 * shape.K)
    return dict(
        grid=(shape.K // shape.heads, B),
        name=name,
        interpret=shape.interpret,
        cost_estimate=pl.CostEstimate(
            flops=attention_program.flops(B, shape.T, shape.N * shape.H, backward=backward),
            bytes_accessed=q.dtype.itemsize * B * shape.T * shape.H * heads,
            transcendentals=B * shape.N * shape.T * shape.T,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
    )


def _specs(shape: Shape, C: int) -> list[pl.BlockSpec]:
    """Blocks of q, k, v, start, the angles, and of the prefix's k and v."""
    width = shape.heads * shape.H
    group = shape.N // shape.K

    def row(heads: Any, b: Any) -> tuple:
        return b, heads, 0

    def token(features: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, features, shape.T), lambda heads, b: (b, 0, 0))

    return [
        pl.BlockSpec((1, width * group, shape.T), row),
        pl.BlockSpec((1, width, shape.T), row),
        pl.BlockSpec((1, width, shape.T), row),
        token(1),
        *[token(shape.H // 2)] * (2 if shape.turned else 0),
        pl.BlockSpec((width, C), lambda heads, b: (heads, 0)),
        pl.BlockSpec((width, C), lambda heads, b: (heads, 0)),
    ]
