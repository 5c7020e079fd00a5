"""Attention of packed rows as one TPU kernel: scores never leave the core.

XLA writes the scores of short rows to HBM and reads them back several times; here a program of the
grid holds one row with some of its heads, and everything between the projections happens inside.
Arrays are kept as XLA's products leave them, tokens last: a head is then a slice of whole tiles,
and scores, keys by queries, have a row's own `start_T` along them. The result is that of
`attention.attend`, rounding apart.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from prompteol_jax import axes, remat
from prompteol_jax.products import matrix_product
from prompteol_jax.stacks import Part, alone, kernel_call

FORWARD: Final = "packed_attention_forward"
BACKWARD: Final = "packed_attention_backward"
_LANES: Final = 128
_WIDTH: Final = 2048  # heads times their width that a program holds at most
_HIDDEN: Final = -1e30
Prefix = tuple[Float[Array, "C K H"], Float[Array, "C K H"]]


class Shape(NamedTuple):
    """Sizes of one call: query and key/value heads, head width, tokens of row, prefix and head."""

    N: int
    K: int
    H: int
    T: int
    C: int
    head: int
    interpret: bool

    @property
    def heads(self) -> int:
        """Key/value heads of one program: as many as fit, in whole tiles."""
        divisors = [k for k in range(1, self.K + 1) if self.K % k == 0]
        return max([k for k in divisors if k * self.H <= _WIDTH] or [1])


def applies(T: int) -> bool:
    """Say whether the kernel takes rows of T tokens: whole tiles of them."""
    return T % _LANES == 0 and T <= 4 * _LANES


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    start_BT: Int[Array, "B T"],
    prefix: Prefix | None,
    *,
    head: int = 0,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attend every token to its own sentence's tokens up to itself, and to the whole prefix.

    On a mesh every device runs the kernel over its own rows and heads.

    Args:
        start_BT: place of the first token of each token's sentence.
        head: tokens at the head of every row that all its sentences see too.
        interpret: run the kernel's program step by step, on any device.
    """
    call = functools.partial(_local, head=head, interpret=interpret)
    rows, heads = PartitionSpec("data", None, "model"), PartitionSpec(None, "model")
    part = Part(PartitionSpec(None, *rows), PartitionSpec())
    own = [q_BTNH, k_BTKH, v_BTKH]
    kept = [remat.kept_in(x) for x in own]
    places = (
        [rows] * 3,
        [p and part for p in kept],
        PartitionSpec("data"),
        None if prefix is None else (heads, heads),
    )
    run = axes.on_every_device(call, places, rows)
    return run(own, kept, start_BT, prefix)


def _local(
    own: list[jax.Array],
    kept: list[Part | None],
    start_BT: jax.Array,
    prefix: Prefix | None,
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
    padding = ((0, 0), (0, _LANES - C % _LANES))

    def in_rows(x: jax.Array) -> jax.Array:
        return x.transpose(0, 2, 3, 1).reshape(B, -1, T)

    kept = [part and part.each(in_rows) for part in kept]
    shared = [jnp.pad(x.reshape(C, K * H).T, padding) for x in (k_CKH, v_CKH)]
    shape = Shape(N, K, H, T, C, head, interpret)
    y = _attend(shape, [in_rows(x) for x in own], kept, start_BT[:, None], *shared)
    return y.reshape(B, N, H, T).transpose(0, 3, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    shape: Shape, own: list, kept: list[Part | None], start: Any, k_C: Any, v_C: Any
) -> jax.Array:
    return kernel_call(
        functools.partial(_forward, shape),
        _parts(own, kept),
        [start, k_C, v_C],
        out_shape=jax.ShapeDtypeStruct(own[0].shape, own[0].dtype),
        in_specs=_specs(shape, k_C.shape[1]),
        out_specs=_specs(shape, k_C.shape[1])[0],
        **_call(shape, own[0], FORWARD),
    )


def _parts(own: list[jax.Array], kept: list[Part | None]) -> list[Part]:
    return [part or alone(x) for x, part in zip(own, kept, strict=True)]


def _attend_forward(
    shape: Shape, own: list, kept: list[Part | None], *operands: jax.Array
) -> tuple[jax.Array, tuple]:
    return _attend(shape, own, kept, *operands), (_parts(own, kept), *operands)


def _attend_backward(shape: Shape, operands: tuple, dy: jax.Array) -> tuple:
    parts, start, k_C, v_C = operands
    specs = _specs(shape, k_C.shape[1])
    wide = jax.ShapeDtypeStruct(k_C.shape, jnp.float32)
    like = [jax.ShapeDtypeStruct(part.stack.shape[1:], part.stack.dtype) for part in parts]
    *own, dk_C, dv_C = kernel_call(
        functools.partial(_backward, shape),
        parts,
        [start, k_C, v_C, dy],
        out_shape=(*like, wide, wide),
        in_specs=[*specs, specs[0]],
        out_specs=(*specs[:3], *specs[4:]),
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
            flops=flops(B, shape.T, shape.N * shape.H, backward=backward),
            bytes_accessed=q.dtype.itemsize * B * shape.T * shape.H * heads,
            transcendentals=B * shape.N * shape.T * shape.T,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
    )


def _specs(shape: Shape, C: int) -> list[pl.BlockSpec]:
    """Blocks of q, k, v, start, and of the prefix's k and v."""
    width = shape.heads * shape.H
    group = shape.N // shape.K

    def row(heads: Any, b: Any) -> tuple:
        return b, heads, 0

    return [
        pl.BlockSpec((1, width * group, shape.T), row),
        pl.BlockSpec((1, width, shape.T), row),
        pl.BlockSpec((1, width, shape.T), row),
        pl.BlockSpec((1, 1, shape.T), lambda heads, b: (b, 0, 0)),
        pl.BlockSpec((width, C), lambda heads, b: (heads, 0)),
        pl.BlockSpec((width, C), lambda heads, b: (heads, 0)),
    ]


def _probabilities(shape: Shape, q: Any, k: Any, k_C: Any, start: Any) -> tuple[Any, Any]:
    """Softmax of one head over its row `[T, Q]` and the prefix `[C, Q]`, float32."""
    scale = shape.H**-0.5
    scores, scores_C = matrix_product(k, q, 0, 0) * scale, matrix_product(k_C, q, 0, 0) * scale
    key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    query = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    own = (key >= start) | (key < shape.head)
    scores = jnp.where((key <= query) & own, scores, _HIDDEN)
    place = jax.lax.broadcasted_iota(jnp.int32, scores_C.shape, 0)
    scores_C = jnp.where(place < shape.C, scores_C, _HIDDEN)
    most = jnp.maximum(scores.max(0, keepdims=True), scores_C.max(0, keepdims=True))
    p, p_C = jnp.exp(scores - most), jnp.exp(scores_C - most)
    total = p.sum(0, keepdims=True) + p_C.sum(0, keepdims=True)
    return p / total, p_C / total


def _rows(head: Any, H: int) -> Any:
    return pl.ds(pl.multiple_of(head * H, H), H)


def _forward(shape: Shape, *refs: Any) -> None:
    q_ref, k_ref, v_ref, start_ref, kc_ref, vc_ref, y_ref = refs
    group = shape.N // shape.K

    def attend(query: Any, _: None) -> None:
        head = jax.lax.div(query, jnp.int32(group))  # floor division would ask for the chip
        rows, own = _rows(query, shape.H), _rows(head, shape.H)
        k, v, k_C, v_C = k_ref[0, own], v_ref[0, own], kc_ref[own], vc_ref[own]
        p, p_C = _probabilities(shape, q_ref[0, rows], k, k_C, start_ref[0])
        y = matrix_product(v, p.astype(v.dtype), 1, 0) + matrix_product(
            v_C, p_C.astype(v.dtype), 1, 0
        )
        y_ref[0, rows] = y.astype(y_ref.dtype)

    jax.lax.fori_loop(0, shape.heads * group, attend, None)


def _backward(shape: Shape, *refs: Any) -> None:
    q_ref, k_ref, v_ref, start_ref, kc_ref, vc_ref, dy_ref = refs[:7]
    dq_ref, dk_ref, dv_ref, dkc_ref, dvc_ref = refs[7:]
    group, scale = shape.N // shape.K, shape.H**-0.5

    @pl.when(pl.program_id(1) == 0)
    def _begin() -> None:
        dkc_ref[...] = jnp.zeros_like(dkc_ref)
        dvc_ref[...] = jnp.zeros_like(dvc_ref)

    def one_head(head: Any, _: None) -> None:
        own = _rows(head, shape.H)
        k, v, k_C, v_C = k_ref[0, own], v_ref[0, own], kc_ref[own], vc_ref[own]

        def one_query(query: Any, sums: tuple) -> tuple:
            rows = _rows(query, shape.H)
            q, dy = q_ref[0, rows], dy_ref[0, rows]
            p, p_C = _probabilities(shape, q, k, k_C, start_ref[0])
            dp, dp_C = matrix_product(v, dy, 0, 0), matrix_product(v_C, dy, 0, 0)
            mean = (p * dp).sum(0, keepdims=True) + (p_C * dp_C).sum(0, keepdims=True)
            ds = (p * (dp - mean) * scale).astype(q.dtype)
            ds_C = (p_C * (dp_C - mean) * scale).astype(q.dtype)
            dq = matrix_product(k, ds, 1, 0) + matrix_product(k_C, ds_C, 1, 0)
            dq_ref[0, rows] = dq.astype(dq_ref.dtype)
            p, p_C = p.astype(dy.dtype), p_C.astype(dy.dtype)
            parts = (
                matrix_product(q, ds, 1, 1),
                matrix_product(dy, p, 1, 1),
                matrix_product(q, ds_C, 1, 1),
                matrix_product(dy, p_C, 1, 1),
            )
            return tuple(total + part for total, part in zip(sums, parts, strict=True))

        none = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v, k_C, v_C))
        first = head * group
        dk, dv, dk_C, dv_C = jax.lax.fori_loop(first, first + group, one_query, none)
        dk_ref[0, own], dv_ref[0, own] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)
        dkc_ref[own] += dk_C
        dvc_ref[own] += dv_C

    jax.lax.fori_loop(0, shape.heads, one_head, None)


def flops(B: int, T: int, width: int, *, backward: bool) -> int:
    """FLOPs of a call over `width` rows of queries; products span the row and the prefix.

    Forward: scores and values; backward: scores again and four gradients.
    """
    products = 5 if backward else 2
    return 2 * products * B * T * (T + _LANES) * width
