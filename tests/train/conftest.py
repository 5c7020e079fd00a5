"""Real triplets, the checkpoints that are trained on them, and the torch references."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest

# `import oracle` works by this name alone, as tests/ is no package.
if "oracle" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "oracle", Path(__file__).parents[1] / "oracle.py"
    )
    sys.modules["oracle"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["oracle"])


@pytest.fixture(scope="session")
def checkpoint(data, tmp_path_factory):
    """The folder of a model by name, written when it is first asked for."""
    import oracle

    @functools.cache
    def folder(name):
        if name == "tinystories-656k":
            return data / "weights" / name
        place = tmp_path_factory.mktemp("trained") / name
        tokenizer = data / "weights" / f"{name.split('-')[0]}-tokenizer"
        return oracle.write(oracle.build(name), place, tokenizer)

    return folder


@pytest.fixture(scope="session")
def nli(data):
    """The first 32 real triplets."""
    from train.data import read_triplets

    return read_triplets(data / "nli" / "nli_triplets.csv").triplets[:32]
