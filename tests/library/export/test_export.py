"""Laws of export: what leaves a run is the run, to peft, transformers and sentence-transformers."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import oracle
import pytest

from prompteol_jax import Embedder
from prompteol_jax.cli import main as cli
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.export import export
from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora import peft
from prompteol_jax.mesh import make_mesh
from prompteol_jax.pretrained.load import load_pretrained, save_pretrained

pytestmark = pytest.mark.usefixtures("coarse")
TEXTS = [
    *("A cat sleeps.", "The man (old) is riding a horse.", "", '(x) "y"', "  two\nlines ", "é 😀"),
    *("</s> and <s>", "<b>{{x}} {% y %}</b>", "It's 12:30!"),
]


def write_run(folder, model, *, full=False, quantize=None, template="eol"):
    """A run's folder as training leaves it, its weights drawn at random."""
    source = load_pretrained(model, make_mesh((1, 1)), dtype="float32")
    lora = adapters.LoraConfig(rank=3, alpha=6.0)
    decoder = adapters.add_lora(source.decoder, source.config, lora, source.mesh, jax.random.key(1))
    for block in (decoder.blocks, decoder.last):
        b = block.attention.o.lora.b
        b.set_value(jax.random.normal(jax.random.key(2), b.shape) * 0.05)
    folder.mkdir()
    fields = {"model": model, "template": template, "quantize": quantize, "full": full}
    (folder / "config.json").write_text(json.dumps(fields))
    if full:
        save_pretrained(source, adapters.merge_lora(decoder), folder / "model", dtype="float32")
    else:
        peft.save_adapter(decoder, source.config, folder / "adapter", base=model)
    return folder


def run(*arguments):
    cli.main(["export", *map(str, arguments)])


def vectors(model, texts, **settings):
    return Embedder.from_pretrained(str(model), dtype="float32", **settings).encode(texts)


def by_sentence_transformers(folder, texts):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("opt-tiny", {"template": "eol-icl-2.7b"}),
        ("llama-gqa-tiny", {"quantize": "nf4"}),
        ("qwen3-tiny", {"quantize": "nf4"}),  # no BOS
        ("opt-350m-tiny", {"full": True}),
    ],
)
def test_a_merged_folder_gives_the_runs_vectors_everywhere(
    name, settings, checkpoints, tmp_path, capsys
):
    base = str(checkpoints(name))
    source = write_run(tmp_path / "run", base, **settings)
    run(source, "--to", "hf", "--output", tmp_path / "merged")
    assert "read back: vectors within" in capsys.readouterr().out
    kind, template = settings.get("quantize"), settings.get("template", "eol")
    if settings.get("full"):
        wanted = vectors(source / "model", TEXTS)
    else:
        wanted = vectors(base, TEXTS, adapter=str(source), template=template, quantize=kind)
    scale = np.abs(wanted).max()
    theirs = by_sentence_transformers(tmp_path / "merged", TEXTS)
    np.testing.assert_allclose(theirs / scale, wanted / scale, rtol=0, atol=1e-5)
    prompts = [t.join(oracle_prompt(template)) for t in TEXTS]
    ids = oracle.ids(tmp_path / "merged", prompts)
    by_transformers = oracle.run(oracle.load(tmp_path / "merged"), ids).vectors
    np.testing.assert_allclose(by_transformers / scale, wanted / scale, rtol=0, atol=1e-5)


def oracle_prompt(template):
    return {"eol": oracle.EOL, "eol-icl-2.7b": oracle.ICL}[template].split("{}")


@pytest.mark.slow
def test_tiny_leaves_for_sentence_transformers_too(tmp_path):
    source = write_run(tmp_path / "run", "tiny")
    run(source, "--to", "hf", "--output", tmp_path / "merged")
    wanted = vectors("tiny", TEXTS[:3], adapter=str(source))
    theirs = by_sentence_transformers(tmp_path / "merged", TEXTS[:3])
    np.testing.assert_allclose(theirs, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "record"),
    [
        (
            "llama-gqa-tiny",
            {
                "prompts": ["eol"],
                "post": [
                    {"kind": "embed-filter", "ratio": 2},
                    {"kind": "normalize"},
                    {"kind": "truncate", "dims": 12},
                ],
            },
        ),
        ("opt-tiny", {"prompts": ["none"], "pooling": "mean"}),
    ],
    ids=["stages", "mean"],
)
def test_a_model_under_a_method_gives_its_vectors_in_sentence_transformers(
    base, record, checkpoints, tmp_path, capsys
):
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"name": "own", **record}))
    model = str(checkpoints(base))
    run(model, "--method", file, "--to", "hf", "--output", tmp_path / "merged")
    assert "sentence-transformers' within" in capsys.readouterr().out
    wanted = vectors(model, TEXTS, method=str(file))
    theirs = by_sentence_transformers(tmp_path / "merged", TEXTS)
    assert theirs.shape == wanted.shape == (len(TEXTS), 12 if "post" in record else 64)
    np.testing.assert_allclose(theirs, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    (first,) = json.loads((tmp_path / "merged" / "method.json").read_text())["prompts"]
    assert first == record["prompts"][0]


def test_a_method_that_no_pipeline_holds_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.SavedRun, "load", None)
    good = ["tiny", "--method", "metaeol", "--to", "hf", "--output", tmp_path / "out"]
    for changed, message in (
        (good, "method metaeol cannot be exported: it averages 8 prompts"),
        ([*good[:2], "eol", "--to", "peft", *good[5:]], "--method needs --to hf"),
    ):
        with pytest.raises(SystemExit):
            run(*changed)
        assert message in capsys.readouterr().err


def test_an_adapter_is_what_peft_loads(checkpoints, tmp_path):
    base = checkpoints("opt-tiny")
    source = write_run(tmp_path / "run", str(base))
    run(source, "--to", "peft", "--output", tmp_path / "adapter")
    prompts = [oracle.EOL.format(t) for t in TEXTS[:2]]
    adapted = oracle.load_adapted(base, tmp_path / "adapter")
    theirs = oracle.run(adapted, oracle.ids(base, prompts)).vectors
    oracle.assert_close(vectors(base, TEXTS[:2], adapter=str(source)), theirs)


@pytest.mark.wide
@pytest.mark.fast("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orbax_alone_reads_the_merged_weights(dtype, tmp_path, capsys):
    from orbax.checkpoint import v1 as ocp

    source = write_run(tmp_path / "run", "tiny", quantize="int8")
    run(source, "--to", "orbax", "--output", tmp_path / "out", "--dtype", dtype)
    assert f"arrays in {dtype}, read back" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="Sharding info not provided"):
        found = ocp.load(tmp_path / "out" / "weights")
    whole = load_pretrained(
        "tiny", make_mesh((1, 1)), dtype="float32", adapter=str(source), quantize="int8"
    )
    merged = adapters.merge_lora(whole.decoder)
    wanted = np.asarray(merged.last.attention.o.w[...].astype(dtype))
    np.testing.assert_array_equal(np.asarray(found["last.attention.o.w"]), wanted)
    assert {"config.json", "tokenizer.json"} < {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_weights_that_are_not_the_runs_are_noticed_and_nothing_is_left(to, tmp_path, monkeypatch):
    source = write_run(tmp_path / "run", "tiny")
    bare = load_pretrained("tiny", make_mesh((1, 1)), dtype="float32").decoder
    monkeypatch.setattr(adapters, "merge_lora", lambda decoder: bare)
    options = export.ExportOptions(run=source, to=to, output=tmp_path / "out" / "here")
    with pytest.raises(ValueError, match="does not encode as the run does: vectors differ by"):
        export.export_run(options)
    assert not list((tmp_path / "out").iterdir())


def test_refuses_what_cannot_be_exported_before_any_work(tmp_path, monkeypatch):
    source = write_run(tmp_path / "run", "tiny")
    monkeypatch.setattr(export.SavedRun, "load", None)
    good = export.ExportOptions(run=source, to="hf", output=tmp_path / "out")
    (tmp_path / "full").mkdir()
    fields = {"model": "tiny", "template": "eol", "full": True}
    (tmp_path / "full" / "config.json").write_text(json.dumps(fields))
    save_pretrained(
        load_pretrained("tiny", make_mesh((1, 1)), dtype="float32"),
        load_pretrained("tiny", make_mesh((1, 1)), dtype="float32").decoder,
        tmp_path / "full" / "model",
        dtype="float32",
    )
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.json").write_text(json.dumps({**fields, "full": False}))
    cases = [
        ({"run": tmp_path}, FileNotFoundError, "no training run"),
        ({"run": tmp_path / "full" / "model"}, ValueError, "lacks model, template, full"),
        ({"run": tmp_path / "young"}, FileNotFoundError, "has kept no weights yet"),
        ({"run": tmp_path / "full", "to": "peft"}, ValueError, "has no adapter; use --to hf"),
        ({"output": source}, FileExistsError, "exists and is not empty"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            export.export_run(dataclasses.replace(good, **changes))


@pytest.fixture
def trained(checkpoints, tmp_path):
    """A base of one's own and a run that was trained on it; `record` notes the base's content."""
    base = tmp_path / "base"
    shutil.copytree(checkpoints("llama-gqa-tiny"), base)
    source = write_run(tmp_path / "run", str(base))

    def record():
        path = source / "config.json"
        work = ModelOptions(model=str(base)).work("float32")
        path.write_text(json.dumps({**json.loads(path.read_text()), "work": work}))

    return base, source, record


def change(base):
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


@pytest.mark.parametrize(
    ("is_recorded", "told"),
    [
        (True, "run belongs to another run: weights.model.safetensors was '"),
        (False, "which recorded no digest of it: model.safetensors is newer than the adapter"),
    ],
)
def test_a_base_that_changed_after_training_is_refused(
    trained, tmp_path, capsys, is_recorded, told
):
    base, source, record = trained
    if is_recorded:
        record()
    run(source, "--to", "peft", "--output", tmp_path / "same")
    change(base)
    with pytest.raises(SystemExit):
        run(source, "--to", "peft", "--output", tmp_path / "other")
    line = capsys.readouterr().err
    assert told in line and "or take what is there now with --other-base" in line
    run(source, "--to", "peft", "--other-base", "--output", tmp_path / "other")


@pytest.mark.slow
def test_a_tokenizer_of_a_foreign_class_is_named_by_one_that_reads_it(data, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(data / "weights" / "tinystories-656k", base)
    path = base / "tokenizer_config.json"
    path.chmod(0o644)
    base.chmod(0o755)
    fields = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    path.write_text(json.dumps(fields))
    source = write_run(tmp_path / "run", str(base))
    run(source, "--to", "hf", "--output", tmp_path / "merged")
    wanted = vectors(base, TEXTS, adapter=str(source))
    theirs = by_sentence_transformers(tmp_path / "merged", TEXTS)
    np.testing.assert_allclose(theirs, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
