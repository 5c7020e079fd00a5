"""Quantized weights: nf4 (Dettmers et al. 2023) and int8, as arrays that a compiled function takes.

A weight is the matrix of its file, outputs by inputs. nf4 divides the matrix, row by row, into
blocks of 64: each number becomes one of 16 levels times the block's largest magnitude. The scales
are quantized too: their mean is subtracted, and each difference becomes one of 256 levels times the
largest magnitude of its group of 256.

    weight = nf4.LEVELS[code] * (SCALE_LEVELS[scale_code] * step + offset)

int8 has one scale for every output: weight = code * peak / 127.

Numbers are made on the host (`quantize`), in bitsandbytes' order of operations, and used on devices
(`Nf4.dequantize`, `Int8.dequantize`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Final, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from prompteol_jax import axes
from prompteol_jax.mesh import is_sharded, on_each_device
from prompteol_jax.ops import layer_slice, nf4, select
from prompteol_jax.ops.nf4 import BLOCK
from prompteol_jax.ops.scan import Saved, as_saved

Kind = Literal["nf4", "int8"]
KINDS: Final = get_args(Kind)
GROUP: Final = 256  # scales that share a step


def _dynamic_levels() -> np.ndarray:
    """256 levels from -1 to 1, denser near 0: seven decades, each with twice as many levels.

    Source: 8-bit Optimizers (Dettmers et al. 2022), dynamic quantization. As bitsandbytes takes
    them from torch.linspace, which counts from both ends, in fused steps of float32.
    """
    levels = [0.0, 1.0]
    low, high = np.float32(0.1), np.float32(1)
    for decade in range(7):
        parts = 2**decade
        step, count = np.float64((high - low) / np.float32(parts)), np.arange(parts + 1)
        edges = np.where(
            count < (parts + 1) // 2, low + step * count, high - step * (parts - count)
        )
        edges = edges.astype(np.float32)
        means = np.float32(10.0 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        levels += [*means, *-means]
    return np.sort(np.array(levels, np.float32))


SCALE_LEVELS: Final = _dynamic_levels()


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A weight in few bits; its arrays may have a leading axis L, or be placeholders.

    Attributes:
        item: shape of the weight itself, without L.
        outputs: rows of its matrix.
    """

    item: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    outputs: int = dataclasses.field(metadata={"static": True})
    kind: ClassVar[Kind]
    in_stack: ClassVar[tuple[str, ...]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that is meant, with L where there is one."""
        first = as_saved(next(iter(self.parts().values()))).value
        return (*first.shape[:-2], *self.item)

    def parts(self) -> dict[str, Any]:
        """The arrays by name, codes first."""
        names = [f.name for f in dataclasses.fields(self) if not f.metadata.get("static")]
        return {name: getattr(self, name) for name in names}

    def of_layer(self) -> Quantized:
        """One layer's weight in a scan: values of its arrays, which are `Saved`.

        Those that a kernel reads in the stack of all layers stay `Saved`.
        """
        values = {n: s if n in self.in_stack else s.value for n, s in self.parts().items()}
        return dataclasses.replace(self, **values)

    def dequantize(self, dtype: Any) -> jax.Array:
        """The weight, computed in float32; of one layer, that is without L."""
        raise NotImplementedError

    def on_use(self, dims: str, dtype: Any, *, fsdp: bool) -> jax.Array:
        """The weight of one layer, as a product takes it under the mesh in context.

        Args:
            dims: axes of the weight, outputs first.
            fsdp: whether its rows are sharded over data; they are gathered.
        """
        raise NotImplementedError

    def _like(self, dims: str, *, fsdp: bool) -> Any:
        """Describe the weight of one layer on the mesh in context."""
        mesh, sizes = jax.sharding.get_abstract_mesh(), dict(zip(dims, self.item, strict=True))
        rows = itertools.accumulate(self.item, operator.mul)
        inputs = dims[1 + list(rows).index(self.outputs) :]
        return placeholder(self.kind, dims, inputs, sizes, mesh, fsdp=fsdp)

    def dequantize_layers(self) -> jax.Array:
        """The weights with L, where there is one, float32."""
        one = partial(type(self).dequantize, dtype=jnp.float32)
        return jax.lax.map(one, self) if len(self.shape) > len(self.item) else one(self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4(Quantized):
    """Four bits a weight, and about an eighth of a bit for the scales.

    Attributes:
        codes: uint8 [rows, columns / 2], the first of two weights in the high bits. In a scan
            `Saved`.
        scale_codes: uint8 [rows, columns / 64].
        steps: float32, one for 256 scales in the order of the matrix.
        offset: float32, mean of the scales.

    Rows and columns are those of the matrix where a row is a multiple of 64. Elsewhere a block may
    span two rows, and the arrays describe one row of blocks.
    """

    kind: ClassVar[Kind] = "nf4"
    in_stack: ClassVar[tuple[str, ...]] = ("codes",)
    codes: Any
    scale_codes: Any
    steps: Any
    offset: Any

    def dequantize(self, dtype: Any) -> jax.Array:
        """The weight, computed in float32."""
        numbers = nf4.dequantize(as_saved(self.codes), self._scales(), jnp.float32)
        if numbers.size > math.prod(self.item):
            numbers = numbers.reshape(-1)[: math.prod(self.item)]
        return numbers.reshape(self.item).astype(dtype)

    def on_use(self, dims: str, dtype: Any, *, fsdp: bool) -> jax.Array:
        """The weight of one layer, of which every device dequantizes its own rows.

        Links carry the result while products run: to dequantize rows of others takes longer, and
        more memory. See decisions/073.
        """
        codes = as_saved(self.codes)
        if len(codes.value) != self.outputs:  # a block may span two rows
            return self.dequantize(dtype)
        own_rows = partial(select.dequantize_nf4, dtype=dtype)
        if not is_sharded():
            return own_rows(codes, self._scales()).reshape(self.item)
        own, whole = (self._like(dims, fsdp=one).codes.sharding.spec for one in (fsdp, False))
        specs = Saved(own, None if codes.slice is None else layer_slice.spec(own))
        matrix = on_each_device(own_rows, (specs, own), own)(codes, self._scales())
        return jax.lax.with_sharding_constraint(matrix, whole).reshape(self.item)

    def _scales(self) -> jax.Array:
        """The scale of every block, float32."""
        rows, blocks = self.scale_codes.shape
        step = jnp.repeat(self.steps, GROUP)[: rows * blocks].reshape(rows, blocks)
        # By way of bfloat16, exact for a byte: libtpu aborts over bytes of few columns on a v5p.
        index = self.scale_codes.astype(jnp.bfloat16).astype(jnp.int32)
        return jnp.asarray(SCALE_LEVELS)[index] * step + self.offset


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8(Quantized):
    """Eight bits a weight, and one scale an output.

    Attributes:
        codes: int8 [rows, columns].
        peaks: float32 [rows, 1], the largest magnitude of each row.
    """

    kind: ClassVar[Kind] = "int8"
    codes: Any
    peaks: Any

    def dequantize(self, dtype: Any) -> jax.Array:
        """The weight, computed in float32."""
        w = self.codes.astype(jnp.float32) * (self.peaks * jnp.float32(1 / 127))
        return w.reshape(self.item).astype(dtype)

    def on_use(self, dims: str, dtype: Any, *, fsdp: bool) -> jax.Array:
        """The weight of one layer, gathered in bytes: they cost one product to dequantize."""
        if not (fsdp and is_sharded()):
            return self.dequantize(dtype)
        like = self._like(dims, fsdp=False)
        whole = jax.tree.map(
            lambda x, part: jax.lax.with_sharding_constraint(x, part.sharding.spec), self, like
        )
        return whole.dequantize(dtype)


def placeholder(
    kind: Kind,
    dims: str,
    inputs: str,
    sizes: Mapping[str, int],
    mesh: Mesh | AbstractMesh,
    *,
    layers: int | None = None,
    fsdp: bool = False,
) -> Quantized:
    """Describe a quantized weight by placeholders: shapes, dtypes and shardings.

    Rows or columns are sharded as the weight itself would be, but no block of 64 is divided: where
    that would happen the axis is replicated. Steps and offset are replicated.

    Args:
        dims: axes of the weight, outputs first.
        inputs: those of `dims` that are contracted.
        layers: length of a leading axis L; None for a weight without one.
        fsdp: shard rows over data too, where it divides them.
    """
    shape = tuple(sizes[letter] for letter in dims)
    outputs = dims.removesuffix(inputs)
    spec = dict(zip(dims, axes.spec(dims, shape, mesh), strict=True))
    rows = math.prod(sizes[letter] for letter in outputs)
    row_axis: Any = spec[outputs[0]]
    if fsdp:
        both = ("data",) if row_axis is None else (row_axis, "data")
        row_axis = both if rows % math.prod(mesh.shape[axis] for axis in both) == 0 else row_axis
    grid = Grid(
        item=shape,
        rows=rows,
        columns=math.prod(sizes[letter] for letter in inputs),
        row_axis=row_axis,
        column_axis=spec[inputs[0]],
        mesh=mesh,
        layers=layers,
    )
    return _int8_placeholder(grid) if kind == "int8" else _nf4_placeholder(grid)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The matrix of a weight on a mesh.

    Attributes:
        item: shape of the weight itself.
        rows: outputs of the matrix; columns: its inputs.
        row_axis: mesh axis that shards the rows; column_axis: the one that shards the columns.
        layers: length of a leading axis L; None for a matrix without one.
    """

    item: tuple[int, ...]
    rows: int
    columns: int
    row_axis: str | tuple[str, ...] | None
    column_axis: str | None
    mesh: Mesh | AbstractMesh
    layers: int | None

    def part(
        self, dtype: Any, shape: tuple[int, ...], *spec: str | tuple[str, ...] | None
    ) -> jax.ShapeDtypeStruct:
        """A placeholder of one array, with L in front where there is one."""
        lead = () if self.layers is None else (self.layers,)
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * len(lead), *spec))
        return jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=sharding)


def _int8_placeholder(grid: Grid) -> Int8:
    codes = grid.part(jnp.int8, (grid.rows, grid.columns), grid.row_axis, grid.column_axis)
    peaks = grid.part(jnp.float32, (grid.rows, 1), grid.row_axis, None)
    return Int8(grid.item, grid.rows, codes, peaks)


def _nf4_placeholder(grid: Grid) -> Nf4:
    rows, blocks, spec = grid.rows, grid.columns // BLOCK, (grid.row_axis, grid.column_axis)
    if grid.columns % BLOCK:  # a block may span two rows
        rows, blocks = 1, -(-grid.rows * grid.columns // BLOCK)
    if rows == 1:
        spec = (None, None)
    elif grid.column_axis is not None and blocks % grid.mesh.shape[grid.column_axis]:
        spec = (grid.row_axis, None)
    return Nf4(
        grid.item,
        grid.rows,
        grid.part(jnp.uint8, (rows, blocks * BLOCK // 2), *spec),
        grid.part(jnp.uint8, (rows, blocks), *spec),
        grid.part(jnp.float32, (-(-rows * blocks // GROUP),), None),
        grid.part(jnp.float32, ()),
    )
