"""Real triplets, the checkpoints that are trained on them, and the torch references."""

import functools

import pytest


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
    from train.data.triplets import read_triplets

    return read_triplets(data / "nli" / "nli_triplets.csv").triplets[:32]
