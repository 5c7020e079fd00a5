"""Which implementation of an op runs: a platform's kernel where it supports the operands, else the
reference. Also what the rest of the library decides by the platform.

A kernel's `supports` returns None, or the reason why it cannot run. Reasons are logged once, at
level DEBUG of the logger `prompteol_jax.ops.select`; `why_not` returns them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from prompteol_jax.ops import (
    attention,
    attention_tpu,
    dropout,
    long_attention_gpu,
    long_attention_tpu,
    lora,
    lora_tpu,
    nf4,
    nf4_tpu,
    norm,
    norm_tpu,
    platform,
)
from prompteol_jax.ops.context import LONG, AttentionContext, AttentionSpec
from prompteol_jax.ops.scan import NONE, Saved, Tape

_LOG: Final = logging.getLogger(__name__)


class Kernel(NamedTuple):
    """A platform's implementation of an op; both functions take the op's operands."""

    supports: Callable[..., str | None]
    run: Callable[..., Any]


REFERENCES: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "attention": attention.attend,
        "long attention": attention.attend,
        "norm": norm.fork,
        "low-rank update": lora.updates,
        "nf4": nf4.dequantize,
    }
)
KERNELS: Final[Mapping[tuple[str, str], Kernel]] = MappingProxyType(
    {
        ("attention", "tpu"): Kernel(attention_tpu.supports, attention_tpu.attend),
        ("long attention", "tpu"): Kernel(long_attention_tpu.supports, long_attention_tpu.attend),
        ("long attention", "gpu"): Kernel(long_attention_gpu.supports, long_attention_gpu.attend),
        ("norm", "tpu"): Kernel(norm_tpu.supports, norm_tpu.fork),
        ("low-rank update", "tpu"): Kernel(lora_tpu.supports, lora_tpu.updates),
        ("nf4", "tpu"): Kernel(nf4_tpu.supports, nf4_tpu.dequantize),
    }
)


def why_not(op: str, *operands: Any) -> str | None:
    """Return why the reference of an op runs on these operands; None where a kernel does."""
    name = platform.current()
    kernel = KERNELS.get((op, name))
    return f"no kernel for {name}" if kernel is None else kernel.supports(*operands)


def _run(op: str, *operands: Any) -> Any:
    reason = why_not(op, *operands)
    if reason is None:
        return KERNELS[op, platform.current()].run(*operands)
    _log(f"{op}: the reference runs: {reason}")
    return REFERENCES[op](*operands)


@functools.cache
def _log(line: str) -> None:
    """Log a line once a process."""
    _LOG.debug(line)


def attend(
    q: Saved,
    k: Saved,
    v: Saved,
    context: AttentionContext,
    spec: AttentionSpec,
    prefix: attention.KeysValues | None,
) -> jax.Array:
    """Attend to the own row and the prefix; see `attention.attend`."""
    op = "attention" if q.value.shape[1] <= LONG else "long attention"
    return _run(op, q, k, v, context, spec, prefix)


def fork_norm(
    kind: norm.Norm, x: Saved, scale: jax.Array, bias: jax.Array | None, tape: Tape = NONE
) -> tuple[jax.Array, jax.Array]:
    """Return the norm of x, and x for the residual connection; see `norm.fork`."""
    return _run("norm", kind, x, scale, bias, tape)


def low_rank_updates(
    forms: Sequence[lora.LowRank],
    x: Saved,
    keys: Sequence[dropout.Keys | None],
    factors: Sequence[lora.Factors],
    tape: Tape = NONE,
) -> list[jax.Array]:
    """Return the updates of several layers with one input; see `lora.updates`.

    Where the kernel cannot hold all of them, it may hold one.
    """
    if len(forms) > 1 and why_not("low-rank update", forms, x, keys, factors, tape):
        each = zip(forms, keys, factors, strict=True)
        return [low_rank_updates([f], x, [k], [ab], tape)[0] for f, k, ab in each]
    return _run("low-rank update", forms, x, keys, factors, tape)


def dequantize_nf4(codes: Saved, scales: jax.Array, dtype: Any) -> jax.Array:
    """Return the weights of one device's codes; see `nf4.dequantize`."""
    return _run("nf4", codes, scales, dtype)


_PREFIX_IN_ROWS: Final = 16  # tokens


def runs_layer_by_layer(mesh: Mesh) -> bool:
    """Return whether encoding calls the layers one by one.

    XLA's CPU compiler copies what a scan slices out of stacked weights.
    """
    return platform.of(mesh) == "cpu"


def streams(mesh: Mesh) -> int:
    """Return how many batches should run at the same time: two on a CPU, where both fill its cores.

    Simulated devices share the cores already.
    """
    return 2 if platform.of(mesh) == "cpu" and mesh.size == 1 else 1


# One kernel for each product, however few its rows are, and no approximation of exp that differs
# between the vector and the scalar code of a loop.
_ROW_STABLE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        "xla_cpu_enable_platform_dependent_math": False,
    }
)


@functools.cache
def row_stable() -> dict[str, Any]:
    """Return options of a CPU's compiler with which a row's bits do not depend on other rows.

    By default XLA fuses a softmax into another kernel where the batch is large. A version of XLA
    without these options gets none; then no small batch is shown to be equal, and none is used.
    """
    options = dict(_ROW_STABLE)
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0))
    except Exception as error:
        _log(f"rows are not stable: {error}")
        return {}
    return options


def batch_tokens(mesh: Mesh, D: int, *, quantized: bool) -> int:
    """Return tokens of a batch that keep the devices of a mesh busy."""
    return device_batch_tokens(platform.of(mesh), D, quantized=quantized) * mesh.shape["data"]


def device_batch_tokens(name: str, D: int, *, quantized: bool) -> int:
    """Return tokens of a batch, for each device along data, that keep a device busy.

    On a TPU all activations of the batch then stay in VMEM. Quantized weights, dequantized once a
    batch, want more tokens: as many as keep those of D features there.

    Args:
        name: of the platform.
    """
    tpu = max(2048, 2**24 // D) if quantized else max(1024, 2**22 // D)
    return {"cpu": 512, "tpu": tpu}.get(name, 16384)


def prefix_in_rows(C: int, mesh: Mesh | None = None) -> bool:
    """Return whether training puts a prefix of C tokens at the beginning of every packed row.

    On a TPU a pass over few tokens takes as long as reading all weights, forward and backward.

    Args:
        mesh: by default the one in context.
    """
    name = platform.current() if mesh is None else platform.of(mesh)
    return name == "tpu" and 0 < C <= _PREFIX_IN_ROWS


def packs_whole_tiles(mesh: Mesh) -> bool:
    """Return whether packed rows should be whole tiles of tokens, which a kernel needs."""
    return platform.of(mesh) == "tpu"
