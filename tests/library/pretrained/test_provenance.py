"""A record holds whatever decides a result, and another byte anywhere makes another record."""

import hashlib
import json
import shutil

import pytest

from prompteol_jax import Embedder
from prompteol_jax.pretrained import provenance
from prompteol_jax.text.template import SLOT, from_pieces


@pytest.fixture
def checkpoint(data, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(data / "weights" / "tinystories-656k", folder)
    return folder


def record(folder, **settings):
    return Embedder.from_pretrained(str(folder), dtype="float32", **settings).describe()


def test_a_record_names_every_byte_and_token(checkpoint):
    found = record(checkpoint, template="eol-icl-125m")
    assert json.loads(json.dumps(found)) == found
    model = found["model"]
    assert (model["family"], model["revision"], found["adapter"]) == ("llama", None, None)
    assert {"config.json", "tokenizer.json"} < set(model["files"])
    for name, digest in model["files"].items():
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == digest
    template = found["template"]
    assert template["demonstrations"] == [{"text": "A man is smoking.", "word": "Smoking"}]
    tokens = [token["token"] for token in template["tokens"]]
    spoken = "".join(tokens[1:]).replace("\u2581", " ").replace("\u0120", " ").strip()
    assert spoken == template["example"]
    assert template["tokens"][0]["id"] == found["tokenizer"]["bos_id"]
    assert 0 < template["shared_prefix"] < len(tokens)
    assert found["dtype"]["activations"] == "float32"
    assert sum(found["dtype"]["weight_bytes"].values()) > 1e6
    assert found["devices"]["mesh"] == "1x1"
    assert {"jax", "transformers", "python"} < set(found["versions"])


def test_a_record_has_the_ids_of_a_prompt_in_pieces(embedders):
    template = from_pieces(["This sen", "tence : ", SLOT, " in", " one word"], "pieces")
    embedder = embedders("tiny").with_template(template)
    found = embedder.describe()["template"]
    prompts = embedder.prompt([provenance.EXAMPLE])
    assert prompts.shared.all()
    ids = [*embedder.prompt.prefix_C, *prompts.ids[0]]
    assert [token["id"] for token in found["tokens"]] == ids
    assert ids != embedder.prompt.tokenizer.ids([found["example"]])[0].tolist()


def test_a_changed_weight_changes_the_record(checkpoint):
    before = record(checkpoint)
    assert record(checkpoint) == before
    (weights,) = [name for name in before["model"]["files"] if name.startswith(("model.s", "py"))]
    content = bytearray((checkpoint / weights).read_bytes())
    content[-1] ^= 1
    (checkpoint / weights).write_bytes(content)
    after = record(checkpoint)
    changed = [n for n, d in after["model"]["files"].items() if before["model"]["files"][n] != d]
    assert changed == [weights]


def test_an_adapter_a_layer_and_a_revision_are_recorded(checkpoint, tmp_path, embedders):
    import jax

    from prompteol_jax.lora import lora as adapters
    from prompteol_jax.lora import peft

    source = Embedder.from_pretrained(str(checkpoint), dtype="float32").pretrained
    lora = adapters.LoraConfig(rank=2)
    adapted = adapters.add_lora(source.decoder, source.config, lora, source.mesh, jax.random.key(0))
    peft.save_adapter(adapted, source.config, tmp_path / "adapter", base="base")
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--acme--cat" / "snapshots" / commit
    shutil.copytree(checkpoint, cached)
    found = record(cached, adapter=str(tmp_path / "adapter"), layer=1, pooling="mean")
    assert found["model"]["revision"] == commit
    assert set(found["adapter"]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert (found["layer"], found["pooling"]) == (1, "mean")
    assert provenance.describe(embedders("tiny"))["model"]["files"] == {}
