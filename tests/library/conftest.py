"""Checkpoints that are written once a session, and what is loaded from them once."""

import functools

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tokenizers(data):
    """The folder of the tokenizer that goes with a model's name."""
    import oracle

    def find(name):
        return data / "weights" / oracle.tokenizer_of(name)

    return find


@pytest.fixture(scope="session")
def checkpoints(data, tokenizers, tmp_path_factory):
    """The folder of a model by name, written when it is first asked for."""
    import oracle

    @functools.cache
    def folder(name):
        if name == "tinystories-656k":
            return data / "weights" / name
        place = tmp_path_factory.mktemp("checkpoints") / name
        return oracle.write(oracle.build(name), place, tokenizers(name))

    return folder


@pytest.fixture(scope="session")
def texts(data):
    """200 sentences of STS-B, cleaned."""
    import oracle

    return oracle.sentences(data, 200)


@pytest.fixture(scope="session")
def references(checkpoints, texts):
    """What transformers says about the 200 sentences, by name of the model."""
    import oracle

    @functools.cache
    def reference(name, prompt=oracle.EOL):
        folder = checkpoints(name)
        return oracle.run(
            oracle.load(folder), oracle.ids(folder, [prompt.format(t) for t in texts])
        )

    return reference


@pytest.fixture(scope="session")
def embedders(checkpoints):
    """Float32 embedders by name of the model and settings, loaded when they are first asked for."""
    from prompteol_jax import Embedder

    @functools.cache
    def embedder(name, mesh="1x1", **settings):
        folder = name if name == "tiny" else str(checkpoints(name))
        return Embedder.from_pretrained(folder, mesh=mesh, dtype="float32", **settings)

    return embedder


@pytest.fixture(scope="session")
def decoders():
    """Small decoders by name, their weights large enough that every token shows in every vector."""
    import jax
    import jax.numpy as jnp

    from prompteol_jax.mesh import make_mesh, parse_mesh
    from prompteol_jax.models import build as models
    from prompteol_jax.models.gemma3 import Gemma3Config
    from prompteol_jax.models.llama import LlamaConfig
    from prompteol_jax.models.olmo2 import Olmo2Config
    from prompteol_jax.models.opt import OptConfig
    from prompteol_jax.models.qwen3 import Qwen3Config

    opt = dict(L=3, D=32, N=4, F=64, V=60, P=40)
    configs = {
        "opt": OptConfig(**opt, E=32),
        "opt-350m": OptConfig(**opt, E=16, pre_norm=False),
        "llama": LlamaConfig(**opt, K=2, H=12, attention_bias=True),
        "qwen3": Qwen3Config(**opt, K=1, H=12, tied=True, window_L=(None, 4, 4)),
        "gemma3": Gemma3Config(**opt, K=2, H=12, query_scalar=9, window_L=(4, None, 4)),
        "olmo2": Olmo2Config(**opt, K=2, H=8),
    }

    @functools.cache
    def build(name, mesh="1x1"):
        config, mesh = configs[name], make_mesh(parse_mesh(mesh))
        model = models.abstract_decoder(config, mesh, dtype=jnp.float32)
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            centre = 1.0 if path.endswith(".scale") else 0.0
            numbers = rng.normal(centre, 0.2, leaf.shape).astype(np.float32)
            return jax.device_put(numbers, leaf.sharding)

        leaves = models.leaves(model).items()
        return config, models.fill(model, {path: draw(path, leaf) for path, leaf in leaves})

    return build
