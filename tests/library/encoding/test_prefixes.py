"""Laws of many prompts over the same texts: each text gets the vector it gets alone."""

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.errors import UserError
from prompteol_jax.text.template import PROMPTEOL, Demonstration, Template

pytestmark = pytest.mark.usefixtures("coarse")

SUBJECTS = "a man", "the old dog", "two women", "a small child", "the black cat"
DEEDS = "is sleeping", "plays the guitar", "runs quickly outdoors today", "is eating bread"
TEXTS = [f"{subject} {deed}" for subject in SUBJECTS for deed in DEEDS]
TEXTS += ["(a dog)", "dog " * 560]  # merges with the quote; too long for any prompt
SHOWN = [
    Demonstration(text, word)
    for text, word in (
        ("a dog runs.", "Running"),
        ("two women play the guitar together.", "Music"),
        ("a man is eating.", "Food"),
        ("the child sleeps.", "Sleep"),
        ("it is cold and the old man goes home again very quickly today.", "Winter"),
    )
]
CANDIDATES = [Template(d.word, PROMPTEOL.prefix, PROMPTEOL.suffix, (d,)) for d in SHOWN]


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", dtype="float32")


@pytest.mark.slow
def test_vectors_are_those_of_encode_for_sentences_of_every_kind(embedder):
    # The last id of its prefix depends on the sentence.
    other = Template("other", "In short : ", " means:", (SHOWN[0],))
    encoder = embedder.prefix_encoder(2048)
    counted = []
    for group in encoder.groups([*CANDIDATES, other]):
        vectors = encoder.encode(group, TEXTS, counted.append)
        for candidate, z_nD in zip(group, vectors, strict=True):
            alone = Embedder(embedder.pretrained, candidate.template).encode(TEXTS)
            np.testing.assert_allclose(z_nD, alone, atol=2e-5)
    assert encoder.alone_texts >= len(CANDIDATES)  # the one that is too long
    assert sum(counted) >= (len(CANDIDATES) + 1) * (len(TEXTS) - 2)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(mesh="4x2"), dict(quantize="nf4"), dict(layer=1)])
def test_vectors_are_those_of_encode_on_a_mesh_quantized_and_of_an_inner_layer(settings):
    embedder = Embedder.from_pretrained("tiny", dtype="float32", **settings)
    encoder = embedder.prefix_encoder(2048)
    (group,) = encoder.groups(CANDIDATES)
    vectors = encoder.encode(group, TEXTS, lambda steps=1: None)
    for candidate, z_nD in zip(group, vectors, strict=True):
        alone = Embedder(embedder.pretrained, candidate.template).encode(TEXTS)
        np.testing.assert_allclose(z_nD, alone, atol=2e-5)


@pytest.mark.parametrize("settings", [dict(pooling="mean")])
def test_refuses_what_is_not_read_at_the_last_token(settings, embedder):
    other = Embedder(embedder.pretrained, "eol", **settings)
    with pytest.raises(UserError, match="prompts are compared at the last token"):
        other.prefix_encoder()


def test_weights_and_limits_are_those_of_the_embedder(embedder):
    short = Embedder(embedder.pretrained, "eol", max_tokens=60)
    short.use(embedder.decoder)
    encoder = short.prefix_encoder(2048)
    assert encoder.prompt(CANDIDATES[0]).max_tokens == 60
    assert encoder.pipeline.decoder is embedder.decoder
