"""PromptEOL sentence embeddings from decoder checkpoints (OPT, LLaMA, Qwen, ...), in JAX/Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompteol_jax.embedder import Embedder
    from prompteol_jax.encoding.runners import encode
    from prompteol_jax.text.template import PROMPTEOL, Template, clean_sentence

__all__ = ["PROMPTEOL", "Embedder", "Template", "clean_sentence", "encode"]

_HOME = {
    "Embedder": "embedder",
    "encode": "encoding.runners",
    "PROMPTEOL": "text.template",
    "Template": "text.template",
    "clean_sentence": "text.template",
}


def __getattr__(name: str) -> object:
    """Import public names on first use: `--help` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
