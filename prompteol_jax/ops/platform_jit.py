"""`jax.jit` with the compiler options that suit the device in context and a model's matrices.

XLA gives one op of a TPU 16 MiB of the core's memory by default and keeps activations, and weights
that it fetches early, in the rest. Where a matrix has more bytes than that rest can hold, products
are faster with larger tiles, which take 32 or 64 MiB. See decisions/070.

XLA would run a product whose result is reduce-scattered as a loop over its shards. Where rows alone
are sharded, such a product is a parameter's gradient, and other gathers would wait in that loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import jax
from jax.core import Tracer

from prompteol_jax.mesh import axis_size
from prompteol_jax.ops import platform

# MiB for one op, on the kinds of devices whose core has at least twice as many.
_LARGE: Final[Mapping[str, int]] = MappingProxyType(
    {
        "TPU v5 lite": 32,
        "TPU v5e": 32,
        "TPU v5": 32,
        "TPU v5p": 32,
        "TPU v6 lite": 64,
        "TPU v6e": 64,
    }
)
_MATRIX: Final = 2**25  # weights of a matrix on one device; more do not stay in the core's memory


def options(weights: int) -> dict[str, str]:
    """Return compiler options for the device in context.

    Args:
        weights: of a layer's largest matrix, over the model axis.
    """
    chosen = {}
    room = _LARGE.get(platform.kind())
    if room is not None and weights > _MATRIX * axis_size("model"):
        chosen["xla_tpu_scoped_vmem_limit_kib"] = str(1024 * room)
    if platform.kind().startswith("TPU") and axis_size("data") > axis_size("model") == 1:
        chosen["xla_tpu_enable_windowed_einsum_for_reduce_scatter"] = "false"
    return chosen


class PlatformJit:
    """A jitted function, compiled with `options`.

    Args:
        weights: returns the weights of a layer's largest matrix from the function's arguments.
        settings: of `jax.jit`.
    """

    def __init__(
        self, function: Callable[..., Any], weights: Callable[..., int], **settings: Any
    ) -> None:
        self._function, self._weights, self._settings = function, weights, settings
        self._jitted: dict[tuple, Any] = {}
        functools.update_wrapper(self, function)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._with_options(arguments, named)(*arguments, **named)

    def trace(self, *arguments: Any, **named: Any) -> Any:
        """Return the traced function, as `jax.jit(...).trace` does."""
        return self._with_options(arguments, named).trace(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """Return the lowered function, as `jax.jit(...).lower` does."""
        return self._with_options(arguments, named).lower(*arguments, **named)

    def programs(self) -> int:
        """Return the number of programs that were compiled."""
        return sum(jitted._cache_size() for jitted in self._jitted.values())

    def _with_options(self, arguments: tuple, named: dict[str, Any]) -> Any:
        """Return the jitted function; inside another one, whose options count, it has none."""
        chosen = options(self._weights(*arguments, **named))
        if chosen and any(isinstance(x, Tracer) for x in jax.tree.leaves((arguments, named))):
            chosen = {}
        key = tuple(chosen.items())
        if key not in self._jitted:
            self._jitted[key] = jax.jit(self._function, compiler_options=chosen, **self._settings)
        return self._jitted[key]
