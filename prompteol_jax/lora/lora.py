"""Low-rank adapters (Hu et al. 2021) on every linear layer.

An update of a layer is read off its equation. The weight `NHD` of `"BTD,NHD->BTNH"` is factored
over its contracted axes and the others, heads joined:

    x_BTD -> a: "BTD,RD->BTR" -> b: "BTR,RI->BTI" -> times alpha / rank, added to the output

Both factors are matrices with the rank first. Files are read and written through the family's own
weight table, one row of it giving two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from prompteol_jax import distributed, models, nn
from prompteol_jax.models import build, initial
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.ops import dropout, einsum, lora, select
from prompteol_jax.ops.scan import NONE, Saved, Tape, as_saved
from prompteol_jax.quant import formats as quant
from prompteol_jax.weights.mapping import TensorMap, axes_of, own_axis, parts_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The shape of an adapter.

    Attributes:
        alpha: the update is scaled by alpha / rank.
        dropout: of an update's input, while training.
        targets: names of the layers to adapt as PEFT names them, such as `q_proj`; all by default.
        rslora: scale by alpha / sqrt(rank) instead.
        block_ranks: ranks of tensors that hold several layers, each of which has `rank` of them;
            empty where the layers share one rank.
    """

    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    rslora: bool = False
    block_ranks: tuple[tuple[str, int], ...] = ()

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


_JOINED: Final = {"NH": "I", "KH": "J"}


class Update(nnx.Module):
    """The low-rank update of one linear layer."""

    def __init__(self, equation: str, make: nn.Placeholders, config: LoraConfig):
        x_dims, w_dims, y_dims = einsum.split_equation(equation)
        contracted = "".join(c for c in w_dims if c in x_dims)
        outer = "".join(c for c in w_dims if c in y_dims)
        joined = _JOINED.get(outer, outer)
        self.a = make.lora("R" + contracted, config.rank)
        self.b = make.lora("R" + joined, config.rank)
        self.merge = f"R{joined},R{contracted}->{joined}{contracted}"
        self.form = lora.LowRank(
            equation,
            a_dims="R" + contracted,
            b_dims="R" + joined,
            outputs=tuple(make.sizes[c] for c in outer),
            rate=config.dropout,
            scale=config.scale,
        )

    def __call__(
        self, x: jax.Array | Saved, keys: dropout.Keys | None, tape: Tape = NONE
    ) -> jax.Array:
        """Return the scaled update, dropout on its input where there are keys."""
        return self.together([self], x, [keys], tape)[0]

    @staticmethod
    def together(
        updates: Sequence[Update],
        x: jax.Array | Saved,
        keys: Sequence[dropout.Keys | None],
        tape: Tape = NONE,
    ) -> list[jax.Array]:
        """Return the updates of several layers with one input."""
        forms = [update.form for update in updates]
        factors = [lora.Factors(*map(_factor, (u.a, u.b))) for u in updates]
        return select.low_rank_updates(forms, as_saved(x), keys, factors, tape)

    def product(self) -> jax.Array:
        """The update as a weight, `scale * b a`, heads joined, float32."""
        equation = self.merge
        if self.a.ndim > 2:
            equation = "L" + equation.replace(",", ",L").replace("->", "->L")
        precision = jax.lax.Precision.HIGHEST
        return self.form.scale * jnp.einsum(equation, self.b[...], self.a[...], precision=precision)


def _factor(parameter: nn.Lora) -> Saved:
    return as_saved(parameter.get_value())


def add_lora(
    model: Decoder, config: models.Config, adapter: LoraConfig, mesh: Mesh, key: jax.Array
) -> Decoder:
    """Put a fresh update on every target layer: `a` uniform within 1/sqrt(inputs), `b` zero.

    Source: peft's default initialization (kaiming uniform with a = sqrt(5)).
    """
    model = attach(model, config, adapter, mesh)
    fresh = {
        path: distributed.to_global(_draw(path, key, leaf.shape), leaf.sharding)
        for path, leaf in build.leaves(model).items()
        if ".lora." in path
    }
    return build.fill(model, build.leaves(model) | fresh)


def _draw(path: str, key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith(".b"):
        return np.zeros(shape, np.float32)
    first = 2 if path.startswith("blocks.") else 1  # behind L and R come the inputs
    bound = math.prod(shape[first:]) ** -0.5
    draw = initial.generator(key, path).random(shape, np.float32)
    return np.float32(bound) * (2 * draw - 1)


def attach(model: Decoder, config: models.Config, adapter: LoraConfig, mesh: Mesh) -> Decoder:
    """A copy of the model with placeholders of updates on the target layers."""
    model = nnx.merge(*nnx.split(model))
    depth = model.depth - 1
    make = nn.Placeholders(config.sizes, jnp.float32, mesh)
    targets = {
        row.target.removesuffix(".a") for row in factor_table(model, config, adapter.targets)
    }
    for path, linear in list(nnx.iter_modules(model)):
        if not isinstance(linear, nn.Linear):
            continue
        name = ".".join(map(str, path))
        place = name.replace("blocks.", "block.").replace("last.", "block.")
        if f"{place}.lora" in targets:
            stacked = name.startswith("blocks.")
            update = Update(linear.equation, make.stacked(depth) if stacked else make, adapter)
            linear.lora = nnx.data(update)
    return model


def factor_table(
    model: Decoder,
    config: models.Config,
    targets: Sequence[str] | None,
    *,
    blocks: bool = False,
) -> tuple[TensorMap, ...]:
    """Rows of the weight table for the factors of an adapter: two for each adapted layer.

    Args:
        blocks: where a tensor of the base holds several layers, the adapter of it has the ranks of
            each of them, one after another; else one rank, the first factor of which they share.
    """
    rows = []
    for source, target, dims in build.weight_table(config, model):
        stem = source.removesuffix(".weight")
        if not target.endswith(".w") or not _is_target(stem, targets):
            continue
        outer, inner = axes_of(dims.split(" -> ")[0])
        own, rank = own_axis(outer), "R"
        if blocks and own != outer:
            rank = "|".join("(R)" if part.startswith("(") else "R" for part in outer.split("|"))
        lora = target.removesuffix(".w") + ".lora"
        rows.append(TensorMap(f"{stem}.lora_A.weight", f"{lora}.a", f"{rank} {inner} -> R {inner}"))
        rows.append(TensorMap(f"{stem}.lora_B.weight", f"{lora}.b", f"{outer} {rank} -> R {own}"))
    return tuple(rows)


def fused_layers(
    model: Decoder, config: models.Config, targets: Sequence[str] | None
) -> dict[str, int]:
    """Return the names of adapted tensors that hold several layers, and how many."""
    return {
        stem.rsplit(".", 1)[-1]: parts_of(dims)
        for source, _, dims in build.weight_table(config, model)
        if _is_target(stem := source.removesuffix(".weight"), targets) and parts_of(dims) > 1
    }


def _is_target(stem: str, targets: Sequence[str] | None) -> bool:
    return targets is None or any(stem == t or stem.endswith(f".{t}") for t in targets)


def merge_lora(model: Decoder) -> Decoder:
    """A model of plain weights that computes the same: updates added to weights, in float32.

    A quantized weight is made whole, in float32; others keep their dtype.
    """
    model = nnx.merge(*nnx.split(model))
    for _, linear in list(nnx.iter_modules(model)):
        if not isinstance(linear, nn.Linear):
            continue
        w = linear.w.get_value()
        if isinstance(w, quant.Quantized):
            w = w.dequantize_layers()
        if linear.lora is not None:
            update = linear.lora.product().reshape(w.shape)
            w = (w.astype(jnp.float32) + update).astype(w.dtype)
        # The variable itself belongs to the other model too.
        linear.w = cast(nn.Weight, linear.w.replace(w))  # of the same class
        linear.lora = nnx.data(None)
    return model


def lora_config(model: Decoder, config: models.Config) -> LoraConfig:
    """Read rank, scale and targets of the adapter that a model carries."""
    updates = {
        ".".join(map(str, path)): m.lora
        for path, m in nnx.iter_modules(model)
        if isinstance(m, nn.Linear) and m.lora is not None
    }
    one = next(iter(updates.values()))
    rank = one.a.shape[1 if next(iter(updates)).startswith("blocks.") else 0]
    places = {p.replace("blocks.", "block.").replace("last.", "block.") for p in updates}
    names = {
        source.removesuffix(".weight").rsplit(".", 1)[-1]
        for source, target, _ in build.weight_table(config, model)
        if target.removesuffix(".w") in places
    }
    return LoraConfig(
        rank=rank, alpha=one.form.scale * rank, dropout=one.form.rate, targets=tuple(sorted(names))
    )
