"""The compilation cache on disk, so that a second process does not compile what a first one did."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, unless jax is told of another place.

    `JAX_COMPILATION_CACHE_DIR` names that place; `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder() -> Path:
    """Where this project keeps what it may make again, under the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "prompteol-jax"
