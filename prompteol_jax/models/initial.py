"""Random weights, drawn on the host: nothing to compile, and the same on every mesh."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prompteol_jax import distributed, models
from prompteol_jax.models.decoder import Decoder


def generator(key: jax.Array, path: str) -> np.random.Generator:
    """The random numbers of one leaf: a pure function of the key and the leaf's path."""
    return np.random.default_rng([*jax.random.key_data(key).tolist(), zlib.crc32(path.encode())])


def random_decoder(
    config: models.Config,
    mesh: Mesh,
    key: jax.Array,
    *,
    dtype: Any,
    weight_dtype: Any = None,
    layers: int | None = None,
) -> Decoder:
    """Draw a decoder at random, so small that a few adapter steps can teach it something.

    Matrices are normal with deviation 0.2 / sqrt(inputs), half of that for queries and keys, which
    lets attention begin almost uniform; embeddings 0.01, positions 0.001, norms one, biases zero.
    """
    model = models.abstract_decoder(
        config, mesh, dtype=dtype, weight_dtype=weight_dtype, layers=layers
    )
    whole = models.leaves(models.abstract_decoder(config, mesh, dtype=dtype))
    drawn = {path: _draw(path, generator(key, path), leaf.shape) for path, leaf in whole.items()}
    arrays = {
        path: distributed.to_global(_up_to(layers, path, drawn).astype(leaf.dtype), leaf.sharding)
        for path, leaf in models.leaves(model).items()
    }
    return models.fill(model, arrays)


def _up_to(layers: int | None, path: str, whole: Mapping[str, np.ndarray]) -> np.ndarray:
    """A leaf of the model's first layers alone."""
    if layers is not None and path.startswith("last."):
        return whole[path.replace("last.", "blocks.", 1)][layers - 1]
    if layers is not None and path.startswith("blocks."):
        return whole[path][: layers - 1]
    return whole[path]


def _draw(path: str, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith(".scale"):
        return np.ones(shape, np.float32)
    if path.endswith((".b", ".bias")):
        return np.zeros(shape, np.float32)
    deviation = {"stem.tokens": 0.01, "stem.positions": 0.001}.get(path)
    if deviation is None:
        outputs = 2 if path.endswith(("q.w", "k.w", "v.w")) else 1  # axes behind which inputs stand
        first = outputs + path.startswith("blocks.")
        deviation = 0.2 / math.prod(shape[first:]) ** 0.5
        deviation *= 0.5 if path.endswith(("q.w", "k.w")) else 1.0
    return np.float32(deviation) * random.standard_normal(shape, np.float32)
