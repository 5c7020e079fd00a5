"""The law above all others: hidden states are those of transformers, on real sentences."""

import json
import shutil

import numpy as np
import oracle
import pytest

from prompteol_jax import Embedder
from prompteol_jax.models import build

pytestmark = pytest.mark.usefixtures("coarse")

NAMES = (
    "opt-tiny",
    "opt-350m-tiny",
    "llama-tiny",
    "llama-gqa-tiny",
    "llama-odd-tiny",
    "llama3-tiny",
    "gemma-tiny",
    "gemma2-tiny",
    "gemma3-tiny",
    "gemma3-untied-tiny",
    "olmo2-tiny",
    "olmo3-tiny",
    "phi3-tiny",
    "phi3-long-tiny",
    "mistral-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
    "qwen3-odd-tiny",
    "tinystories-656k",
)


@pytest.mark.first("opt-350m-tiny", "llama-gqa-tiny", "tinystories-656k")
@pytest.mark.fast(
    "opt-tiny",
    "llama-tiny",
    "phi3-tiny",
    "llama-gqa-tiny",
    "tinystories-656k",
    "olmo3-tiny",
    "llama3-tiny",
    "opt-350m-tiny",
)
@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_transformers(name, embedders, references, texts):
    embedder = embedders(name)
    assert len(embedder.prompt.prefix_C) > 2  # Qwen has no BOS
    oracle.assert_close(embedder.encode(texts), references(name).vectors)
    most = embedder.prompt.most_shared or 10**6  # longer ones have another rope in the prefix too
    ids = embedder.pretrained.tokenizer.ids([oracle.EOL.format(text) for text in texts])
    assert embedder.report.whole == sum(len(own) > most for own in ids)


SPREAD = (
    *("opt-tiny", "llama-odd-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-odd-tiny", "gemma-tiny"),
    *("gemma2-tiny", "gemma3-tiny", "olmo2-tiny", "olmo3-tiny", "phi3-tiny"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("mesh", ["4x2", "2x4"])
def test_vectors_on_a_mesh_are_those_of_transformers(mesh, name, embedders, references, texts):
    vectors = embedders(name, mesh).encode(texts[:40])
    oracle.assert_close(vectors, references(name).vectors[:40])


@pytest.mark.slow
def test_vectors_of_opt_125m_are_those_of_transformers(embedders, references, texts):
    oracle.assert_close(embedders("opt-125m").encode(texts), references("opt-125m").vectors)


@pytest.mark.huge
def test_vectors_of_tinyllama_are_those_of_transformers(checkpoints, texts):
    folder = checkpoints("tinyllama-1.1b")
    ids = oracle.ids(folder, [oracle.EOL.format(t) for t in texts])
    theirs = oracle.run(oracle.load.__wrapped__(folder), ids).vectors
    embedder = Embedder.from_pretrained(str(folder), mesh="2x4", dtype="float32")
    shutil.rmtree(folder)  # gigabytes, and mapped already
    oracle.assert_close(embedder.encode(texts), theirs)


@pytest.mark.wide
@pytest.mark.fast("none")
@pytest.mark.parametrize(
    ("template", "prompt"), [("eol-icl-2.7b", oracle.ICL), ("none", "{}")], ids=["icl", "none"]
)
def test_vectors_are_those_of_transformers_under_other_templates(
    template, prompt, embedders, references, texts
):
    vectors = embedders("opt-tiny", template=template).encode(texts)
    oracle.assert_close(vectors, references("opt-tiny", prompt).vectors)


@pytest.mark.first("opt-tiny--2-1")
@pytest.mark.parametrize(
    ("name", "layer", "index"),
    [
        ("opt-tiny", 1, 1),
        ("opt-tiny", -2, 1),
        ("opt-tiny", 2, 2),
        ("opt-tiny", -1, 2),
        ("opt-350m-tiny", 1, 1),
        ("llama-odd-tiny", 3, 3),
        ("llama-odd-tiny", -3, 2),
    ],
)
def test_an_inner_layer_is_the_hidden_state_of_its_number(
    name, layer, index, embedders, references, texts
):
    embedder = embedders(name, layer=layer)
    oracle.assert_close(embedder.encode(texts), references(name).states[index])


@pytest.mark.parametrize("name", ["opt-tiny", "opt-350m-tiny", "llama-odd-tiny"])
def test_one_encoding_gives_all_hidden_states_of_the_last_token(name, embedders, references, texts):
    layers = embedders(name).encode_layers(texts)
    states = references(name).states[1:]
    for ours, theirs in zip(layers, states, strict=True):
        oracle.assert_close(ours, theirs)
    np.testing.assert_allclose(layers[-1], embedders(name).encode(texts), atol=1e-6)


@pytest.mark.first("llama-gqa-tiny")
@pytest.mark.parametrize("name", ["opt-tiny", "opt-350m-tiny", "llama-gqa-tiny"])
def test_mean_pooling_is_over_all_tokens_of_the_prompt_and_no_padding(
    name, embedders, references, texts
):
    oracle.assert_close(embedders(name, pooling="mean").encode(texts), references(name).mean)


@pytest.mark.first("opt-tiny", "tinystories-656k")
@pytest.mark.fast("opt-tiny", "opt-350m-tiny", "llama-odd-tiny", "llama3-tiny", "tinystories-656k")
@pytest.mark.parametrize(
    "name",
    [
        *("opt-tiny", "opt-350m-tiny", "llama-odd-tiny", "llama3-tiny", "tinystories-656k"),
        *("gemma2-tiny", "gemma3-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-odd-tiny"),
        *("gemma-tiny", "gemma3-untied-tiny", "olmo2-tiny", "olmo3-tiny", "phi3-tiny"),
        "qwen3-tiny",
    ],
)
def test_words_are_the_most_likely_next_tokens(name, embedders, references, texts):
    embedder, logits = embedders(name), references(name).logits[0].astype(np.float64)
    best = np.argsort(-logits)[:10]
    p = np.exp(logits - logits.max())
    found = embedder.words(texts[0], 10)
    decode = embedder.pretrained.tokenizer.decode
    assert [word for word, _ in found] == [decode([int(i)]) for i in best]
    np.testing.assert_allclose([q for _, q in found], (p / p.sum())[best], rtol=1e-4)


FLIPPED = (
    *("mistral-tiny", "qwen2-tiny", "qwen3-tiny", "gemma-tiny", "gemma2-tiny"),
    *("olmo2-tiny", "olmo3-tiny", "phi3-tiny"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLIPPED)
def test_a_head_may_be_tied_or_not_in_every_family(name, tokenizers, texts, tmp_path):
    tied = oracle.SHAPES[name].get("tie_word_embeddings", name.startswith("gemma"))
    model = oracle.build(name, tie_word_embeddings=not tied)
    folder = oracle.write(model, tmp_path, tokenizers(name))
    found = Embedder.from_pretrained(str(folder), dtype="float32")
    theirs = oracle.run(model, oracle.ids(folder, [oracle.EOL.format(texts[0])]))
    oracle.assert_close(found.encode(texts[:1]), theirs.vectors)
    (ids,), (p,) = found.next_tokens(texts[:1], 10)
    logits = theirs.logits[0].astype(np.float64)
    np.testing.assert_array_equal(ids, np.argsort(-logits)[:10])
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(p, expected[ids] / expected.sum(), rtol=1e-4)


def in_shards(model, folder):
    oracle.write(model, folder, None, max_shard_size="4MB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def in_bin(model, folder):
    import torch

    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def in_bin_shards(model, folder):
    import torch

    model.config.save_pretrained(folder)
    state = oracle.tensors(model)
    names = sorted(state)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2]}
    halves["pytorch_model-00002-of-00002.bin"] = names[1::2]
    for file, part in halves.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def without(dropped):
    def store(model, folder):
        from safetensors.torch import save_file

        model.config.save_pretrained(folder)
        save_file(oracle.tensors(model, drop=[dropped]), folder / "model.safetensors")

    return store


def without_prefix(model, folder):
    from safetensors.torch import save_file

    model.config.save_pretrained(folder)
    state = oracle.tensors(model, drop=["lm_head.weight"])
    stripped = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    save_file(stripped, folder / "model.safetensors")


EMBEDDING = {
    "opt-tiny": "model.decoder.embed_tokens.weight",
    "llama3-tiny": "model.embed_tokens.weight",
}


@pytest.mark.first(
    "shards-opt-tiny",
    "bin-llama3-tiny",
    "bin_shards-opt-tiny",
    "without_head-llama3-tiny",
    "only_head-opt-tiny",
    "without_prefix-llama3-tiny",
)
@pytest.mark.parametrize("name", EMBEDDING)
@pytest.mark.parametrize(
    "store", ["shards", "bin", "bin_shards", "without_head", "only_head", "without_prefix"]
)
def test_how_weights_are_stored_never_matters(
    name, store, checkpoints, embedders, tokenizers, texts, tmp_path
):
    stores = dict(shards=in_shards, bin=in_bin, bin_shards=in_bin_shards)
    stores |= dict(without_head=without("lm_head.weight"), without_prefix=without_prefix)
    stores |= dict(only_head=without(EMBEDDING[name]))
    oracle.write(oracle.load(checkpoints(name)), tmp_path / "files", tokenizers(name))
    for weights in (tmp_path / "files").glob("*.safetensors"):
        weights.unlink()
    stores[store](oracle.load(checkpoints(name)), tmp_path / "files")
    embedder = Embedder.from_pretrained(str(tmp_path / "files"), dtype="float32")
    np.testing.assert_array_equal(embedder.encode(texts[:40]), embedders(name).encode(texts[:40]))


@pytest.mark.first("llama-gqa-tiny-float16")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["opt-tiny", "llama-gqa-tiny"])
def test_half_precision_on_disk_is_read_exactly(
    name, dtype, checkpoints, tokenizers, texts, tmp_path
):
    import torch

    halved = oracle.load(checkpoints(name)).to(getattr(torch, dtype))
    oracle.load.cache_clear()
    folder = oracle.write(halved, tmp_path, tokenizers(name))
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    ids = oracle.ids(folder, [oracle.EOL.format(t) for t in texts])
    embedder = Embedder.from_pretrained(str(folder), dtype="float32")
    oracle.assert_close(embedder.encode(texts), oracle.run(oracle.load(folder), ids).vectors)


@pytest.mark.first(
    "opt-350m-tiny", "llama-odd-tiny", "gemma3-untied-tiny", "phi3-long-tiny", "qwen3-odd-tiny"
)
@pytest.mark.parametrize(
    "name",
    [
        *("opt-tiny", "opt-350m-tiny", "llama-odd-tiny", "llama3-tiny"),
        *("gemma-tiny", "gemma2-tiny", "gemma3-tiny", "gemma3-untied-tiny"),
        *("mistral-tiny", "olmo2-tiny", "olmo3-tiny", "phi3-tiny", "phi3-long-tiny"),
        *("qwen2-tiny", "qwen3-odd-tiny"),
    ],
)
def test_a_written_folder_gives_transformers_the_same_model(
    name, checkpoints, embedders, references, texts, tmp_path
):
    from transformers import AutoModel

    pretrained = embedders(name).pretrained
    build.save_decoder(tmp_path, pretrained.config, pretrained.decoder, dtype="float32")
    body = AutoModel.from_pretrained(tmp_path).state_dict()
    source = oracle.load(checkpoints(name)).model.state_dict()
    assert body.keys() == source.keys()
    assert all((body[key] == source[key]).all() for key in source)
    assert build.read_config(tmp_path) == pretrained.config


@pytest.mark.slow
def test_bfloat16_stays_near_float32(checkpoints, references, texts):
    vectors = Embedder.from_pretrained(str(checkpoints("opt-tiny"))).encode(texts)
    assert vectors.dtype == np.float32
    theirs = references("opt-tiny").vectors
    cosine = (vectors * theirs).sum(1)
    cosine /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.9995
