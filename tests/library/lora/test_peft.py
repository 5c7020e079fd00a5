"""Laws of PEFT folders: files in and out, strictly, and the same outputs as peft."""

import json
import re
import shutil

import jax
import numpy as np
import oracle
import pytest

from prompteol_jax.encoding.runners import encode
from prompteol_jax.errors import UserError
from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora import peft
from prompteol_jax.lora.lora import LoraConfig
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.weights import load

MESH = (1, 1)
N = 40


@pytest.fixture(scope="module")
def rows(checkpoints, texts):
    """Whole prompts of the first sentences: transformers' ids, and our rows of them."""

    def make(name):
        ids = oracle.ids(checkpoints(name), [oracle.EOL.format(t) for t in texts[:N]])
        ids_BT, last_BS = np.zeros((N, 96), np.int32), np.zeros((N, 1), np.int32)
        for row, sentence in enumerate(ids):
            ids_BT[row, : len(sentence)] = sentence
            last_BS[row] = len(sentence) - 1
        return ids, Rows(ids_BT, last_BS)

    return make


CASES = {
    "opt-tiny": dict(r=4, lora_alpha=16, target_modules="all-linear"),
    "opt-350m-tiny": dict(r=4, lora_alpha=16, target_modules="all-linear", use_rslora=True),
    "llama-odd-tiny": dict(r=4, lora_alpha=16, target_modules="all-linear"),
    "llama-gqa-tiny": dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    "qwen3-odd-tiny": dict(r=4, lora_alpha=16, target_modules="all-linear"),
    "gemma3-tiny": dict(r=4, lora_alpha=16, target_modules="all-linear"),
    "olmo2-tiny": dict(r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "down_proj"]),
    "phi3-tiny": dict(r=4, lora_alpha=16, target_modules="all-linear"),
}
SLOW = ("mistral-tiny", "qwen2-tiny", "gemma-tiny", "gemma2-tiny", "olmo3-tiny")
CASES |= {name: dict(r=4, lora_alpha=16, target_modules="all-linear") for name in SLOW}


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES],
)
def case(request, checkpoints, embedders, tmp_path_factory):
    """A model's name, the model, its decoder with an adapter of peft, and the adapter's folder."""
    name = request.param
    folder = tmp_path_factory.mktemp("adapter")
    oracle.write_adapter(checkpoints(name), folder, deviation=0.1, **CASES[name])
    base = embedders(name).pretrained
    return name, base, peft.load_adapter(base.decoder, base.config, folder, base.mesh), folder


@pytest.mark.first("llama-gqa-tiny", "gemma3-tiny")
@pytest.mark.fast(
    "llama-gqa-tiny", "opt-tiny", "opt-350m-tiny", "olmo2-tiny", "phi3-tiny", "gemma3-tiny"
)
def test_vectors_are_those_of_peft(case, checkpoints, rows):
    name, base, model, folder = case
    ids, ours = rows(name)
    theirs = oracle.run(oracle.load_adapted(checkpoints(name), folder), ids).vectors
    oracle.assert_close(np.asarray(encode(model, ours))[:, 0], theirs)
    assert np.abs(np.asarray(encode(base.decoder, ours))[:, 0] - theirs).max() > 1e-2


@pytest.mark.first("llama-odd-tiny", "phi3-tiny")
def test_peft_loads_what_is_written_and_so_do_we(case, checkpoints, rows, tmp_path):
    name, base, model, _ = case
    ids, ours = rows(name)
    peft.save_adapter(model, base.config, tmp_path, base="some/model")
    theirs = oracle.run(oracle.load_adapted(checkpoints(name), tmp_path), ids).vectors
    oracle.assert_close(np.asarray(encode(model, ours))[:, 0], theirs)
    again = peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh)
    kept = build.leaves(model)
    assert kept.keys() == build.leaves(again).keys()
    for path, leaf in build.leaves(again).items():
        np.testing.assert_array_equal(leaf, kept[path])


@pytest.mark.first("opt-350m-tiny", "gemma3-tiny")
def test_merged_into_the_weights_it_computes_the_same(case, rows):
    name, base, model, _ = case
    _, ours = rows(name)
    before = encode(model, ours)
    merged = adapters.merge_lora(model)
    assert any(".lora." in path for path in build.leaves(model))
    assert build.leaves(merged).keys() == build.leaves(base.decoder).keys()
    np.testing.assert_allclose(encode(merged, ours), before, atol=2e-5)
    np.testing.assert_array_equal(encode(model, ours), before)  # which is left as it was


def test_refuses_ranks_that_mix_the_layers_of_a_fused_tensor(checkpoints, embedders, tmp_path):
    from safetensors.numpy import load_file, save_file

    base = embedders("phi3-tiny").pretrained
    oracle.write_adapter(checkpoints("phi3-tiny"), tmp_path, **CASES["phi3-tiny"])
    model = peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh)
    peft.save_adapter(model, base.config, tmp_path, base="some/model")
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight"
    assert np.count_nonzero(tensors[name]) == tensors[name].size // 3
    tensors[name][0, -1] = 1.0
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"1.self_attn.qkv_proj.lora_B.weight mixes the rank"):
        peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["rank_pattern"] == {"qkv_proj": 12, "gate_up_proj": 8}
    other = embedders("llama-gqa-tiny").pretrained
    fields |= {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 8}}
    fields |= {"alpha_pattern": {"q_proj": 32}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"rank_pattern = {'q_proj': 8} is not supported for this"):
        peft.load_adapter(other.decoder, other.config, tmp_path, other.mesh)


def test_an_adapter_on_some_layers_only_is_refused(checkpoints, embedders, tmp_path):
    targets = [f"model.decoder.layers.{layer}.{name}" for layer, name in ((0, "fc1"), (1, "fc2"))]
    oracle.write_adapter(checkpoints("opt-tiny"), tmp_path, r=2, target_modules=targets)
    base = embedders("opt-tiny").pretrained
    with pytest.raises(load.WeightMismatch, match=r"missing \(4\): decoder.layers.\d.fc"):
        peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh)


def test_the_released_adapters_of_promptEOL_load(checkpoints, embedders, rows, tmp_path):
    import torch
    from safetensors.torch import load_file

    oracle.write_adapter(
        checkpoints("opt-tiny"),
        tmp_path / "peft",
        r=64,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    )
    # The files as peft wrote them in 2023.
    released = tmp_path / "released"
    released.mkdir()
    torch.save(
        load_file(tmp_path / "peft/adapter_model.safetensors"), released / "adapter_model.bin"
    )
    fields = {
        "base_model_name_or_path": "facebook/opt-2.7b",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 64,
        "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        "task_type": "CAUSAL_LM",
    }
    (released / "adapter_config.json").write_text(json.dumps(fields))
    base = embedders("opt-tiny").pretrained
    model = peft.load_adapter(base.decoder, base.config, released, base.mesh)
    ids, ours = rows("opt-tiny")
    theirs = oracle.run(oracle.load_adapted(checkpoints("opt-tiny"), tmp_path / "peft"), ids)
    oracle.assert_close(np.asarray(encode(model, ours))[:, 0], theirs.vectors)
    assert adapters.lora_config(model, base.config) == LoraConfig(
        targets=("fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj")
    )


@pytest.mark.first("llama-odd-tiny")
@pytest.mark.parametrize("name", ["opt-350m-tiny", "llama-odd-tiny"])
def test_an_inner_layer_takes_the_adapters_of_the_layers_below_it(
    name, checkpoints, rows, tmp_path
):
    from prompteol_jax.pretrained.load import load_pretrained

    oracle.write_adapter(checkpoints(name), tmp_path, deviation=0.1, **CASES[name])
    model = load_pretrained(
        str(checkpoints(name)),
        make_mesh(MESH),
        dtype="float32",
        adapter=str(tmp_path),
        layer=1,
    ).decoder
    ids, ours = rows(name)
    theirs = oracle.run(oracle.load_adapted(checkpoints(name), tmp_path), ids).states[1]
    oracle.assert_close(np.asarray(encode(model, ours))[:, 0], theirs)


@pytest.mark.parametrize("mesh", ["8x1", "4x2", "2x4"])
def test_an_adapter_lies_on_any_mesh(mesh, decoders, tmp_path):
    config, model = decoders("llama")
    lora = LoraConfig(rank=3, targets=("q_proj", "down_proj"))
    key = jax.random.key(0)
    model = adapters.add_lora(model, config, lora, make_mesh(MESH), key)
    peft.save_adapter(model, config, tmp_path, base="some/model")
    _, spread = decoders("llama", mesh)
    place = make_mesh(parse_mesh(mesh))
    spread = peft.load_adapter(spread, config, tmp_path, place)
    born = adapters.add_lora(spread, config, lora, place, key)
    for path, leaf in build.leaves(model).items():
        np.testing.assert_array_equal(leaf, build.leaves(spread)[path])
        if ".lora." in path:
            np.testing.assert_allclose(leaf, build.leaves(born)[path], rtol=1e-6)
            assert build.leaves(born)[path].sharding.mesh.shape == place.shape


def plain(**changes):
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]} | changes


def write(folder, **changes):
    fields = {k: v for k, v in plain(**changes).items() if v is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, LoraConfig(rank=4, dropout=0.0, targets=("q_proj",))),
        (
            {"lora_dropout": 0.1, "use_rslora": True},
            LoraConfig(rank=4, dropout=0.1, targets=("q_proj",), rslora=True),
        ),
        ({"target_modules": "all-linear"}, LoraConfig(rank=4, dropout=0.0)),
        (
            {"use_dora": False, "rank_pattern": {}, "bias": "none"},
            LoraConfig(rank=4, dropout=0.0, targets=("q_proj",)),
        ),
    ],
)
def test_reads_the_config_of_plain_lora(changes, expected, tmp_path):
    assert peft.read_adapter_config(write(tmp_path, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3', supported: 'LORA'"),
        ({"peft_type": ...}, "peft_type = None, supported: 'LORA'"),
        ({"r": ..., "lora_alpha": ...}, "r is missing; lora_alpha is missing"),
        ({"use_dora": True, "bias": "all"}, "use_dora = True is not supported; bias = 'all' is"),
        (
            {"rank_pattern": {"q_proj": 8}},
            "rank_pattern = {'q_proj': 8} with alpha_pattern = {}",
        ),
        ({"alpha_pattern": {"q_proj": 8}}, "with alpha_pattern = {'q_proj': 8} is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head'] is not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform = [0] is not supported"),
        ({"target_modules": ".*_proj"}, "target_modules = '.*_proj' is a pattern; supported: a"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": []}, "target_modules = [] is not a list of names"),
        (
            {"target_modules": ["q_proj", 3]},
            "target_modules = ['q_proj', 3] is not a list of names",
        ),
        ({"target_modules": {"q_proj": 1}}, "target_modules = {'q_proj': 1} is not a list of"),
        ({"r": 0}, "adapter_config.json: r = 0 is not a whole number from 1 up"),
        ({"r": "8"}, "r = '8' is not a whole number"),
        ({"r": 4.0}, "r = 4.0 is not a whole number"),
        ({"r": True}, "r = True is not a whole number"),
        ({"r": 10**9}, "r = 1000000000 is above 65536"),
        ({"lora_alpha": "16"}, "lora_alpha = '16' is not a number from 0 up"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"lora_dropout": 1.0}, "lora_dropout = 1.0 is not below 1"),
        ({"use_rslora": "yes"}, "use_rslora = 'yes' is neither true nor false"),
        ({"alpha_shift": 0}, "alpha_shift = 0 is not supported"),
    ],
)
def test_refuses_what_is_not_plain_lora(changes, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        peft.read_adapter_config(write(tmp_path, **changes))


# Peft says so where it stores the base's embedding with an adapter on the head.
HEAD_IS_STORED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"adapter_config\.json is not a JSON object but a list"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_refuses_a_config_that_is_no_object(text, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        peft.read_adapter_config(tmp_path)


@HEAD_IS_STORED
def test_an_adapter_on_the_head_gives_the_vectors_of_peft(checkpoints, embedders, rows, tmp_path):
    name = "llama-gqa-tiny"
    targets = ["q_proj", "v_proj", "lm_head"]
    oracle.write_adapter(checkpoints(name), tmp_path, deviation=0.1, r=4, target_modules=targets)
    base = embedders(name).pretrained
    ids, ours = rows(name)
    model = peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh)
    theirs = oracle.run(oracle.load_adapted(checkpoints(name), tmp_path), ids).vectors
    oracle.assert_close(np.asarray(encode(model, ours))[:, 0], theirs)
    assert peft.adapts_head(tmp_path)


@HEAD_IS_STORED
def test_an_adapter_on_the_head_alone_changes_no_vector(checkpoints, embedders, tmp_path):
    name = "llama-gqa-tiny"
    oracle.write_adapter(checkpoints(name), tmp_path, r=4, target_modules=["lm_head"])
    base = embedders(name).pretrained
    assert peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh) is base.decoder


def test_refuses_an_adapter_that_brings_an_embedding(checkpoints, embedders, tmp_path):
    import safetensors.numpy

    name = "llama-gqa-tiny"
    oracle.write_adapter(checkpoints(name), tmp_path, r=4, target_modules=["q_proj"])
    assert not peft.adapts_head(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    brought: dict[str, np.ndarray] = {
        "base_model.model.model.embed_tokens.weight": np.zeros((9, 8), np.float32)
    }
    safetensors.numpy.save_file(safetensors.numpy.load_file(file) | brought, file)
    base = embedders(name).pretrained
    message = r"brings an embedding of its own \(embed_tokens\.weight, shape \(9, 8\); the base"
    with pytest.raises(UserError, match=f"{tmp_path.name} {message}"):
        peft.load_adapter(base.decoder, base.config, tmp_path, base.mesh)


def test_refuses_a_folder_without_config_or_weights(decoders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config.json: it is no adapter"):
        peft.read_adapter_config(tmp_path)
    config, model = decoders("opt")
    with pytest.raises(FileNotFoundError, match=r"neither adapter_model.safetensors nor adapter_m"):
        peft.load_adapter(model, config, write(tmp_path), make_mesh(MESH))


def test_refuses_an_adapter_of_another_family(decoders, tmp_path):
    config, model = decoders("opt")
    write(tmp_path, target_modules=["q_proj", "gate_proj"])
    with pytest.raises(
        ValueError, match=r"adapts \['gate_proj'\], which a opt model does not have"
    ):
        peft.load_adapter(model, config, tmp_path, make_mesh(MESH))


def test_refuses_an_adapter_of_another_size_with_every_tensor(decoders, tmp_path):
    config, model = decoders("opt")
    mesh = make_mesh(MESH)
    lora = LoraConfig(rank=4, targets=("q_proj", "fc1"))
    adapted = adapters.add_lora(model, config, lora, mesh, jax.random.key(0))
    peft.save_adapter(adapted, config, tmp_path / "fits", base="some/model")
    shutil.copytree(tmp_path / "fits", tmp_path / "other")
    write(tmp_path / "other", target_modules=["q_proj", "fc2"])
    with pytest.raises(load.WeightMismatch) as caught:
        peft.load_adapter(model, config, tmp_path / "other", mesh)
    assert len(caught.value.missing) == len(caught.value.unexpected) == 2 * config.L
    write(tmp_path / "fits", target_modules=["q_proj", "fc1"], r=5)
    with pytest.raises(load.WeightMismatch, match="misshapen \\(12\\)"):
        peft.load_adapter(model, config, tmp_path / "fits", mesh)


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_dropout_is_the_files_or_what_is_asked_for(dropout, decoders, tmp_path):
    config, model = decoders("opt")
    mesh = make_mesh(MESH)
    adapted = adapters.add_lora(
        model, config, LoraConfig(rank=4, dropout=0.2), mesh, jax.random.key(0)
    )
    peft.save_adapter(adapted, config, tmp_path, base="some/model")
    again = peft.load_adapter(model, config, tmp_path, mesh, dropout=dropout)
    expected = 0.2 if dropout is None else 0.0
    assert adapters.lora_config(again, config).dropout == expected
