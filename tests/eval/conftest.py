"""A small real encoder for the evaluation's own tests."""

import re
import zlib
from types import SimpleNamespace

import numpy as np
import pytest


class BagOfWords:
    """Counts of hashed words, whose cosines tie often; it notes what it is called with."""

    model_name = "bag[of]words"
    dtype = "float32"
    template = SimpleNamespace(name="eol")

    def __init__(self):
        self.calls, self.progress = [], []

    def describe(self):
        return {"model": {"name": self.model_name, "files": {}}}

    def encode(self, texts, progress="not given"):
        self.calls.append(list(texts))
        self.progress.append(progress)
        vectors = np.zeros((len(texts), 64), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+|\S", text.lower()):
                vector[zlib.crc32(word.encode()) % 64] += 1
        return vectors


@pytest.fixture
def bag_of_words():
    """An encoder without a model."""
    return BagOfWords()
