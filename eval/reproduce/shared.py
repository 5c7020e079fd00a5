"""What rows of one model share: its weights, and vectors of prompts that several rows average."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from eval.shared.vector_cache import CacheOptions
from eval.sts.command import StsOptions
from prompteol_jax import Embedder
from prompteol_jax.methods.record import Method


class Lender:
    """Lends one model after another to rows that differ in their methods.

    Attributes:
        loads: times that a model was loaded.
    """

    def __init__(self) -> None:
        self._model: str | None = None
        self._embedder: Embedder | None = None
        self.loads = 0

    def __call__(self, options: StsOptions) -> tuple[Embedder, Embedder | PartEncoder]:
        """Return an embedder with a row's method, and what encodes for it.

        The whole model is loaded, and cut where a method reads an inner layer.
        """
        assert options.method is not None  # rows of methods have one
        if self._embedder is None or options.model != self._model:
            self._embedder = None  # two models may not fit
            self._embedder = dataclasses.replace(options, method=None).load("float32")
            self._model = options.model
            self.loads += 1
        embedder = self._embedder.with_method(options.method)
        if options.strict_original:
            return embedder, embedder
        return embedder, PartEncoder(self._embedder, embedder, options)


class PartEncoder:
    """Encodes each prompt of a method by itself, through the vectors on disk, and averages.

    Args:
        whole: embedder of the whole model; embedder: the one with the method.

    Attributes:
        found: vectors that were on disk.
    """

    def __init__(self, whole: Embedder, embedder: Embedder, options: CacheOptions):
        assert embedder.method is not None
        self._whole, self._options, self._method = whole, options, embedder.method
        self._post = embedder.views.post
        self.found = 0

    def encode(
        self, texts: Sequence[str], progress: bool | None = None
    ) -> Float[np.ndarray, "n D"]:
        """Return the vectors of the method; see `Embedder.encode` for errors."""
        method = self._method
        if any(v.transform and v.transform.kind != "reversed-words" for v in method.prompts):
            return self._vectors(method, texts, progress)  # a text has several vectors a prompt
        parts = [
            dataclasses.replace(method, name="part", prompts=(view,), post=(), **_UNSAID)
            for view in method.prompts
        ]
        total_nD = sum(self._vectors(part, texts, progress).astype(np.float64) for part in parts)
        mean_nD = np.asarray(total_nD / len(parts), np.float32)
        return self._post(mean_nD) if self._post else mean_nD

    def _vectors(
        self, method: Method, texts: Sequence[str], progress: bool | None
    ) -> Float[np.ndarray, "n D"]:
        encoder = self._options.cached(self._whole.with_method(method))
        vectors = encoder.encode(texts, progress=progress)
        self.found += getattr(encoder, "found", 0)
        return vectors


# What a record says of a method and no vector depends on, so that parts of two records are alike.
_UNSAID = {"about": None, "paper": None, "published": (), "unverified": None}
