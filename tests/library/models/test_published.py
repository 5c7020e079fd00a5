"""Published shapes have the sizes that their names say."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from prompteol_jax.models import build
from prompteol_jax.models.published import PUBLISHED, published

UNSAID = {"phi-3-mini": "-3.8b", "phi-4": "-14b"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_name_says_how_many_weights(name):
    number, unit = re.search(r"-([\d.]+)([mb])\b", UNSAID.get(name, name)).groups()
    said = float(number) * {"m": 1e6, "b": 1e9}[unit]
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    config = PUBLISHED[name]
    leaves = build.leaves(build.abstract_decoder(config, mesh, dtype="bfloat16"))
    weights = sum(leaf.size for leaf in leaves.values())
    weights += 0 if config.tied else config.V * config.D
    # LLaMA's 30b has 32.5, 3.2-1b 1.24 billion.
    assert weights == pytest.approx(said, rel=0.25 if "3.2" in name else 0.1)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_shape_survives_the_way_to_hugging_face_and_back(name):
    config = PUBLISHED[name]
    assert type(config).from_hf(config.to_hf()) == config


def test_hub_names_are_known():
    assert published("facebook/opt-6.7b") is PUBLISHED["opt-6.7b"]
    assert published("meta-llama/Llama-2-7b-hf") is PUBLISHED["llama-2-7b"]
    assert published("meta-llama/Meta-Llama-3-8B") is PUBLISHED["llama-3-8b"]
    assert published("allenai/OLMo-2-1124-7B") is PUBLISHED["olmo-2-7b"]
    assert published("microsoft/Phi-3-mini-4k-instruct") is PUBLISHED["phi-3-mini"]
    assert published("facebook/opt-7b") is None
