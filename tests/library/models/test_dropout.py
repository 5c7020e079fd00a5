"""Dropout of the base model in training acts where it does in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import FAMILIES, initial
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops import dropout

IDS_BT = np.array([[2, 713, 3645, 4832, 22, 250, 4758, 9529, 4, 22, 839]], np.int32)


def sites_of_transformers(model, monkeypatch):
    """Return rate and width of every call of dropout in one pass in training."""
    import torch

    sites, drop = [], torch.nn.functional.dropout

    def recorded(x, p=0.5, training=True, inplace=False):
        if p > 0 and training:
            sites.append((p, x.shape[-1]))
        return drop(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", recorded)
    model.train()(input_ids=torch.tensor(IDS_BT))
    return sites


def our_sites(model, monkeypatch):
    sites, drop = [], dropout.drop

    def recorded(x, keys, rate):
        if keys is not None and rate > 0:
            sites.append((rate, x.shape[-1]))
        return drop(x, keys, rate)

    monkeypatch.setattr(dropout, "drop", recorded)
    keys = dropout.token_keys(jax.random.key(0), jnp.zeros_like(IDS_BT), jnp.arange(11)[None])
    model(Rows(jnp.asarray(IDS_BT), jnp.array([[10]])), None, keys)
    return sites


@pytest.mark.first("opt-350m-tiny")
@pytest.mark.parametrize("name", ["opt-tiny", "opt-350m-tiny", "llama-tiny"])
def test_the_sites_of_dropout_are_those_of_transformers(name, monkeypatch):
    theirs = oracle.build(name)
    config = FAMILIES[theirs.config.model_type][0].from_hf(theirs.config.to_dict())
    ours = initial.random_decoder(config, make_mesh((1, 1)), jax.random.key(0), dtype=jnp.float32)
    assert config.L == 2  # one block is scanned, so each of the two is traced once
    sites = our_sites(ours, monkeypatch)
    assert sites == sites_of_transformers(theirs, monkeypatch)
    assert len(sites) == (4 if name.startswith("opt") else 0)
