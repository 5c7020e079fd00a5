"""Random weights, drawn on the host: nothing to compile, and the same on every mesh."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Mesh

from prompteol_jax import distributed, models
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.quant import formats as quant
from prompteol_jax.weights import load

# Leaves are seeded by the paths of the first release, so that a seed gives the same numbers.
_FIRST_PATHS: Final = (
    ("embedding.", "stem."),
    ("final_norm.", "finish."),
    (".attention.", "."),
    (".mlp.", "."),
)


def generator(key: jax.Array, path: str) -> np.random.Generator:
    """Return the random numbers of one leaf: a pure function of the key and the leaf's path."""
    for now, first in _FIRST_PATHS:
        path = path.replace(now, first)
    return np.random.default_rng([*jax.random.key_data(key).tolist(), zlib.crc32(path.encode())])


def random_decoder(
    config: models.Config,
    mesh: Mesh,
    key: jax.Array,
    *,
    dtype: Any,
    weight_dtype: Any = None,
    quantize: quant.Kind | None = None,
    layers: int | None = None,
    fsdp: bool = False,
) -> Decoder:
    """Draw a decoder at random, so small that a few adapter steps can teach it something.

    Matrices are normal with deviation 0.2 / sqrt(inputs), half of that for queries and keys, which
    lets attention begin almost uniform; embeddings 0.01, positions 0.001, norms one, biases zero.
    """
    model = build.abstract_decoder(
        config,
        mesh,
        dtype=dtype,
        weight_dtype=weight_dtype,
        quantize=quantize,
        layers=layers,
        fsdp=fsdp,
    )
    whole = build.leaves(build.abstract_decoder(config, mesh, dtype=dtype))
    drawn = {path: _draw(path, generator(key, path), leaf.shape) for path, leaf in whole.items()}
    arrays = {
        path: _place(path, leaf, _up_to(layers, path, drawn))
        for path, leaf in build.leaves(model).items()
    }
    return build.fill(model, arrays)


def _place(path: str, leaf: Any, numbers: np.ndarray) -> jax.Array | quant.Quantized:
    if not isinstance(leaf, quant.Quantized):
        return distributed.to_global(numbers.astype(leaf.dtype), leaf.sharding)
    stacked = path.startswith("blocks.")
    layers = list(numbers) if stacked else [numbers]
    return load.place_quantized(leaf, [(path, layer) for layer in layers], stacked=stacked)


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
    deviation = {"embedding.tokens": 0.01, "embedding.positions": 0.001}.get(path)
    if deviation is None:
        outputs = 2 if path.endswith(("q.w", "k.w", "v.w")) else 1  # axes behind which inputs stand
        first = outputs + path.startswith("blocks.")
        deviation = 0.2 / math.prod(shape[first:]) ** 0.5
        deviation *= 0.5 if path.endswith(("q.w", "k.w")) else 1.0
    return np.float32(deviation) * random.standard_normal(shape, np.float32)
