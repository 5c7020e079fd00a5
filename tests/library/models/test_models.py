"""Laws of families by name: folders that are refused, layers by number."""

import dataclasses
import json

import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.weights import load


@pytest.mark.parametrize(
    ("layer", "blocks"),
    [(None, None), (1, 1), (11, 11), (12, None), (-1, None), (-2, 11), (-12, 1)],
)
def test_a_layer_is_counted_as_hidden_states_are(layer, blocks):
    assert build.resolve_layer(layer, 12) == blocks


@pytest.mark.parametrize("layer", [0, 13, -13, -14])
def test_refuses_a_layer_that_does_not_exist(layer):
    with pytest.raises(ValueError, match=rf"layer {layer} does not exist: allowed are 1 to 12, or"):
        build.resolve_layer(layer, 12)


def test_refuses_a_stored_head_that_is_not_the_embedding_it_is_said_to_be(tmp_path, decoders):
    config, model = decoders("llama")
    head = build.leaves(model)["embedding.tokens"]
    tied = dataclasses.replace(config, tied=True)
    build.save_decoder(tmp_path, tied, model, dtype="float32", head=head)
    build.check_tied_head(tmp_path, tied)
    build.save_decoder(tmp_path, tied, model, dtype="float32", head=head + 1)
    build.check_tied_head(tmp_path, dataclasses.replace(config, tied=False))
    with pytest.raises(UserError, match=r"tie_word_embeddings = true, but lm_head\.weight is not"):
        build.check_tied_head(tmp_path, tied)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"model_type": "gpt2"}', r"model_type = 'gpt2' is not supported; supported: \['gemma', "),
        ("{}", "model_type = None is not supported"),
        ('{"model_type": "lama"}', r"'lama' is not supported \(did you mean llama\?\)"),
        ('{"model_type": ["llama"]}', r"model_type = \['llama'\] is not supported"),
        ('[{"model_type": "llama"}]', r"config\.json is not a JSON object but a list"),
        ("\xff", r"config\.json is not UTF-8"),
        ('{"a":' * 100_000, r"config\.json is not .* nested too deeply"),
        ('{"model_type": "opt", "model_type": "llama"}', "'model_type' occurs twice"),
        ('{"model_type": "opt", "a": ' + " " * 2**24 + "1}", r"longer than 16777216 bytes"),
        ('{"model_type": "opt"}', r"/config\.json: hidden_size is missing; num_hidden_layers is"),
    ],
)
def test_refuses_a_config_of_no_known_family(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        build.read_config(tmp_path)


def test_refuses_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json: it is not a model folder"):
        build.read_config(tmp_path)


@pytest.mark.parametrize("name", ["opt", "opt-350m", "llama"])
def test_round_trip_through_a_folder(name, decoders, tmp_path):
    config, model = decoders(name)
    build.save_decoder(tmp_path, config, model, dtype="float32")
    assert build.read_config(tmp_path) == config
    again = build.load_decoder(tmp_path, config, make_mesh((4, 2)), dtype="float32")
    for path, leaf in build.leaves(model).items():
        np.testing.assert_array_equal(build.leaves(again)[path], leaf)


def test_refuses_weights_of_another_model_with_every_tensor(decoders, tmp_path):
    config, model = decoders("opt-350m")
    build.save_decoder(tmp_path, config, model, dtype="float32")
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"do_layer_norm_before": True, "num_hidden_layers": 2, "vocab_size": 61}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(load.WeightMismatch) as caught:
        other = build.read_config(tmp_path)
        build.load_decoder(tmp_path, other, make_mesh((1, 1)), dtype="float32")
    norm = {"decoder.final_layer_norm.weight", "decoder.final_layer_norm.bias"}
    assert set(caught.value.missing) == norm
    assert all(name.startswith("decoder.layers.2.") for name in caught.value.unexpected)
    assert len(caught.value.unexpected) == 16
    assert [text.split()[0] for text in caught.value.misshapen] == ["decoder.embed_tokens.weight"]
