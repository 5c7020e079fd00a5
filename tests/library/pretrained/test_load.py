"""Laws of models by name: what belongs together is found, the rest refused before any work."""

import json

import jax
import numpy as np
import pytest

from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora import peft
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build, initial
from prompteol_jax.pretrained.load import find_adapter, load_pretrained, save_pretrained

MESH = (1, 1)


def load(name, mesh=MESH, **settings):
    return load_pretrained(name, make_mesh(mesh), dtype="float32", **settings)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


def test_tiny_needs_no_files_and_is_the_same_on_every_mesh(tiny):
    assert tiny.folder is None
    for path, leaf in build.leaves(load("tiny", (4, 2)).decoder).items():
        np.testing.assert_allclose(leaf, build.leaves(tiny.decoder)[path], rtol=1e-6)


def test_round_trip_of_a_whole_folder(tiny, tmp_path):
    save_pretrained(tiny, tiny.decoder, tmp_path, dtype="float32")
    again = load(str(tmp_path))
    assert again.config == tiny.config
    texts = ["A man is playing.", "é 😀", ""]
    for ours, theirs in zip(again.tokenizer.ids(texts), tiny.tokenizer.ids(texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for path, leaf in build.leaves(again.decoder).items():
        np.testing.assert_array_equal(leaf, build.leaves(tiny.decoder)[path])


def test_an_adapter_is_a_folder_or_that_of_a_training_run(tiny, tmp_path):
    lora = adapters.LoraConfig(rank=2, targets=("fc1",))
    model = adapters.attach(tiny.decoder, tiny.config, lora, tiny.mesh)
    leaves = build.leaves(model)
    ones = {p: np.ones(leaf.shape, np.float32) for p, leaf in leaves.items() if ".lora." in p}
    model = build.fill(model, leaves | {p: jax.device_put(a) for p, a in ones.items()})
    peft.save_adapter(model, tiny.config, tmp_path / "run" / "adapter", base="tiny")
    for name in ("run", "run/adapter"):
        assert find_adapter(str(tmp_path / name)) == tmp_path / "run" / "adapter"
    found = load("tiny", adapter=str(tmp_path / "run"))
    assert adapters.lora_config(found.decoder, found.config).rank == 2


def test_an_inner_layer_of_tiny_is_that_of_the_same_weights(tiny):
    whole = build.leaves(tiny.decoder)
    cut = build.leaves(load("tiny", layer=1).decoder)
    for path, leaf in cut.items():
        kind = path.split(".")[0]
        same = {"last": lambda p: whole[p.replace("last", "blocks")][0]}
        same |= {"blocks": lambda p: whole[p][:0], "embedding": whole.__getitem__}
        np.testing.assert_array_equal(leaf, same[kind](path))


def test_settings_reach_the_decoder(tiny):
    assert load("tiny", base_dropout=0.25).config.dropout == 0.25
    half = load("tiny", weight_dtype="bfloat16").decoder
    assert (half.dtype, half.last.attention.q.w[...].dtype) == ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(layer=3), ValueError, "layer 3 does not exist: allowed are 1 to 2, or -1 to -2"),
        (dict(mesh=(1, 8)), ValueError, r"mesh 1x8 does not fit: N = 4 \(query heads\)"),
        (dict(name="no/such/folder"), FileNotFoundError, "neither an existing folder nor a hub"),
        (dict(adapter="no/such/adapter"), FileNotFoundError, "neither an existing folder nor a"),
    ],
)
def test_refuses_before_any_weight_is_made(settings, error, message, monkeypatch):
    monkeypatch.delattr(initial, "random_decoder")
    monkeypatch.delattr(build, "load_decoder")
    with pytest.raises(error, match=message):
        load(**{"name": "tiny"} | settings)


def test_refuses_a_kind_of_adapter_before_any_weight_is_made(monkeypatch, tmp_path):
    monkeypatch.delattr(initial, "random_decoder")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [], "use_dora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="use_dora = True is not supported"):
        load("tiny", adapter=str(tmp_path))
