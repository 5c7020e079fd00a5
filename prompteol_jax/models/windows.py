"""Windows of layers: to how many of the last tokens each layer attends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prompteol_jax.models.config import Fields, shown

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
Windows = tuple[int | None, ...]  # of each layer; None for all tokens


def read_windows(f: Fields, L: int, window: int | None, default: Sequence[str]) -> Windows | None:
    """Read `layer_types`, and return the window of each layer; None where no layer has one.

    Args:
        window: of the sliding layers.
        default: types of the layers where the config has none.
    """
    kinds = f.take("layer_types", list(default))
    known = (FULL, SLIDING)
    if not isinstance(kinds, list) or len(kinds) != L or any(kind not in known for kind in kinds):
        f.wrong(f"layer_types = {shown(kinds)} is not one of {[*known]} for each layer")
        return None
    if SLIDING not in kinds:
        return None
    if window is None:
        f.wrong(f"layer_types names {SLIDING}, but sliding_window is null")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def periodic(period: int, L: int) -> list[str]:
    """Return the types of layers of which all slide but the last one of each period."""
    return [SLIDING if (n + 1) % period else FULL for n in range(L)]


def every_layer(window: int | None, L: int) -> Windows | None:
    """Return one window for all layers."""
    return None if window is None else (window,) * L


def widest(window_L: Windows | None) -> int | None:
    """Return the `sliding_window` of a config: families have one for all sliding layers."""
    return max((window for window in window_L or () if window is not None), default=None)


def layer_types(window_L: Windows | None, L: int) -> list[str]:
    """Return the `layer_types` of a config."""
    return [FULL if window is None else SLIDING for window in window_L or (None,) * L]
