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
        model = {"name": self.model_name, "folder": None, "files": {}, "parameters": 64}
        return {"model": model, "adapter": None, "layer": None}

    def words(self, text, k):
        return [(word, 1 / k) for word in sorted(text.split())[:k]]

    def encode(self, texts, progress="not given"):
        self.calls.append(list(texts))
        self.progress.append(progress)
        vectors = np.zeros((len(texts), 64), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+|\S", text.lower()):
                vector[zlib.crc32(word.encode()) % 64] += 1
        return vectors


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test finds the vectors of another one, or of a user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bag_of_words():
    """An encoder without a model."""
    return BagOfWords()


@pytest.fixture(scope="session")
def small_downstream(tmp_path_factory):
    """SentEval's folder with five pairs a subset of every STS task."""
    from eval.sts.tasks import YEARS

    root = tmp_path_factory.mktemp("senteval") / "downstream"
    pairs = [
        (5.0, "A cat sleeps", "A cat is asleep"),
        (4.0, "Two men talk", "Some men are talking"),
        (3.0, "She reads a book", "A girl has a book"),
        (1.5, "The train is late", "He missed the bus"),
        (1.0, "Rain falls on the town", "The soup is too hot"),
    ]
    for year, subsets in YEARS.items():
        folder = root / "STS" / f"{year}-en-test"
        folder.mkdir(parents=True)
        for subset in subsets:
            texts = "".join(f"{a}\t{b}\n" for _, a, b in pairs)
            (folder / f"STS.input.{subset}.txt").write_text(texts)
            (folder / f"STS.gs.{subset}.txt").write_text("".join(f"{g}\n" for g, *_ in pairs))
    (root / "STS" / "STSBenchmark").mkdir()
    lines = "".join(f"g\tf\ty\t{n}\t{g}\t{a}\t{b}\n" for n, (g, a, b) in enumerate(pairs))
    for split in ("dev", "test"):
        (root / "STS" / "STSBenchmark" / f"sts-{split}.csv").write_text(lines)
    (root / "SICK").mkdir()
    lines = "n\ta\tb\tscore\n" + "".join(
        f"{n}\t{a}\t{b}\t{g}\n" for n, (g, a, b) in enumerate(pairs)
    )
    (root / "SICK" / "SICK_test_annotated.txt").write_text(lines)
    return root


@pytest.fixture
def small_is_whole(monkeypatch):
    """Five pairs a subset count as the published size of a task."""
    from eval.shared import datasets
    from eval.sts.tasks import TABLES, YEARS

    sizes = {year: (5 * len(subsets),) for year, subsets in YEARS.items()}
    monkeypatch.setattr(datasets, "SIZES", sizes | dict.fromkeys(TABLES, (5,)))


@pytest.fixture(scope="session")
def torch_probe():
    """The module of the probes' oracle; torch is slow to import."""
    import torch_probe

    return torch_probe
