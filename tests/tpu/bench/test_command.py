"""What is measured is the work that was asked for, and a peer does the same work."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build, tiny
from prompteol_jax.models.llama import LlamaConfig
from prompteol_jax.models.opt import OptConfig
from prompteol_jax.models.published import PUBLISHED
from prompteol_jax.pretrained.load import load_pretrained
from tpu import random_checkpoint
from tpu.bench import command as bench
from tpu.bench import device
from tpu.bench import encode as bench_encode
from tpu.lengths import read_lengths
from tpu.plan.jobs import linear_weights

TEXTS = [f"{a} {b} {c}." for a in ("A man", "The dog") for b in ("sees", "has") for c in "abcdefgh"]
OPT = OptConfig(L=2, D=32, N=4, F=64, V=50272, P=64, E=32)
LLAMA = LlamaConfig(L=2, D=32, N=4, K=2, H=8, F=48, V=32000, P=64)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*TEXTS, *TEXTS]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small(monkeypatch):
    """Small shapes under published names."""
    shapes = {"opt-small": OPT, "llama-small": LLAMA}
    monkeypatch.setattr(random_checkpoint, "published", shapes.get)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(device, "_SIDES", {"cpu": (64,)})
    monkeypatch.setattr(device, "_SECONDS", 0.01)


@pytest.mark.parametrize("name", ["opt-6.7b", "opt-350m", "llama-7b", "llama-3-8b"])
def test_useful_weights_are_those_of_the_blocks_linear_layers(name):
    config = PUBLISHED[name]
    model = build.abstract_decoder(config, make_mesh((1, 1)), dtype=np.float32)
    blocks = [leaf for path, leaf in build.leaves(model).items() if path.endswith(".w")]
    outside = 2 * config.D * config.E if name == "opt-350m" else 0
    assert linear_weights(config) == sum(int(np.prod(w.shape)) for w in blocks) - outside


def test_encoding_is_measured(texts, tmp_path, capsys):
    out = tmp_path / "bench.json"
    flags = ["--model", "tiny", "--texts", str(texts), "--n", "20", "--rounds", "2"]
    # Shapes that nothing else has compiled: what is cached keeps the scopes it was compiled with.
    template = tmp_path / "odd.txt"
    template.write_text('Look_at_this_odd_old_sentence_:_"*sent_0*"_means_in_one_word:"')
    flags += ["--batch-tokens", "331", "--template", str(template)]
    bench.main(["encode", *flags, "--json", str(out), "--profile", str(tmp_path / "trace")])
    result = json.loads(out.read_text())
    ours = result["ours"]
    assert (result["job"], result["model"], result["peers"]) == ("encode", "tiny", {})
    assert len(ours["seconds"]) == 2
    report = ours["report"]
    assert (report["texts"], report["distinct"]) == (20, 20)
    middle = np.median(ours["seconds"])
    np.testing.assert_allclose(ours["sentences_per_s"], 20 / middle)
    np.testing.assert_allclose(ours["tokens_per_s"], report["tokens"] / middle)
    weights = tiny.CONFIG.L * (4 * 128 * 128 + 2 * 128 * 256)
    np.testing.assert_allclose(ours["useful_flops"], 2 * weights * report["tokens"] / middle)
    np.testing.assert_allclose(ours["useful_mfu"], ours["useful_flops"] / ours["matrix_flops"])
    assert ours["peak_bytes"] > 1e8 and ours["compile_s"] > 0 and ours["load_s"] > 0
    assert scopes(tmp_path / "trace") == {"prefix", "attention", "mlp", "pool"}
    shown = " ".join(capsys.readouterr().out.split())  # lines end where the console does
    for part in ("tiny", "useful MFU", "plan fixed", "the device waited", "peak memory of the"):
        assert part in shown


def scopes(folder):
    """The scopes of the code that a trace names; a gradient's stand in `jvp(...)`."""
    (trace,) = folder.rglob("*.xplane.pb")
    named = re.findall(rb"[/(](prefix|attention|mlp|pool|loss)[/)]", trace.read_bytes())
    return {name.decode() for name in named}


def test_texts_are_the_first_distinct_ones(texts):
    options = bench.EncodeBench(model="tiny", texts=texts, n=40)
    assert bench_encode.read_texts(options) == TEXTS
    clean = bench.EncodeBench(model="tiny", texts=texts, n=3, clean=True)
    assert bench_encode.read_texts(clean) == TEXTS[:3]


def test_made_up_texts_are_as_long_as_the_lengths_say(data):
    embedder = Embedder.from_pretrained("tiny", dtype="float32")
    lengths = read_lengths(None, "encode")
    texts = bench_encode.made_texts(embedder, lengths, 200)
    assert len(set(texts)) == len(texts) == 200
    drawn = lengths.draw(200)
    assert [len(ids) for ids in embedder.prompt(texts).ids] == drawn


def test_a_plan_stands_beside_what_is_measured(texts, tmp_path, capsys):
    plan = {"job": "encode", "fits": True, "topology": "v5e:2x4", "mesh": "8x1", "shapes": ""}
    rates = {"sentences_per_s": 1234.5, "estimated_s": 0.5, "useful_mfu": 0.789}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan | rates))
    flags = ["encode", "--model", "tiny", "--texts", str(texts), "--n", "20", "--rounds", "1"]
    bench.main([*flags, "--planned", str(path)])
    shown = capsys.readouterr().out
    for cell in ("planned v5e:2x4", "1,234.5", "78.9%"):
        assert cell in shown
    path.write_text(json.dumps(plan | rates | {"job": "train"}))
    with pytest.raises(SystemExit):
        bench.main([*flags, "--planned", str(path)])
    assert "holds no plan of encode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "random:opt-125m"], "random:opt-125m needs --tokenizer FOLDER"),
        (["--model", "random:no", "--tokenizer", "."], "no published shape 'no'; there are opt-"),
        (["--model", "random:opt-small", "--tokenizer", "."], "holds no tokenizer; give"),
        (["--model", "tiny", "--peer", "transformers"], "tiny has no folder that a peer could"),
        (["--model", "m", "--peer", "transformers", "--layer", "1"], "a peer knows no --adapter"),
        (["--model", "tiny", "--lengths", "x"], "--texts and --lengths exclude each other"),
        (["--model", "tiny", "--rounds", "0", "--json", "no/a"], "be at least 1; the folder of"),
        (["--model", "tiny", "--n", "0"], "--n 0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(texts, small, capsys, flags, message):
    with pytest.raises(SystemExit):
        bench.main(["encode", "--texts", str(texts), *flags])
    assert message in capsys.readouterr().err


@pytest.mark.wide
@pytest.mark.parametrize("name", ["opt-small", "llama-small"])
def test_a_random_checkpoint_is_one_that_loads(small, tmp_path, data, name):
    tokenizer = data / "weights" / f"{name.split('-', maxsplit=1)[0]}-tokenizer"
    flags = [name, str(tmp_path / "a"), "--tokenizer", str(tokenizer), "--dtype", "float32"]
    random_checkpoint.main(flags)
    loaded = load_pretrained(str(tmp_path / "a"), make_mesh((1, 1)), dtype=np.float32)
    assert loaded.config.D == 32
    leaves = build.leaves(loaded.decoder)
    q = np.asarray(leaves["blocks.attention.q.w"])
    assert abs(q.std() / random_checkpoint.DEVIATION - 1) < 0.1
    assert (np.asarray(leaves["last.mlp_norm.scale"]) == 1).all()
    assert not np.array_equal(q[0], np.asarray(leaves["last.attention.q.w"]))


def test_importing_it_needs_neither_jax_nor_what_only_training_needs():
    code = (
        "import sys, tpu.bench\n"
        "wrong = {'jax', 'torch', 'grain', 'tyro', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not wrong, wrong\n"
        "import tpu.bench.encode\n"
        "wrong = {'torch', 'grain', 'tyro', 'orbax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not wrong, wrong\n"
        "import tpu.random_checkpoint\n"
        "wrong = {'torch', 'grain', 'orbax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not wrong, wrong\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_peers_do_the_same_work(small, texts, tmp_path, data):
    pytest.importorskip("sentence_transformers", reason="it comes with the extra mteb")
    peers = ["transformers", "sentence-transformers"]
    flags = ["--model", "random:opt-small", "--tokenizer", str(data / "weights/opt-tokenizer")]
    out = tmp_path / "bench.json"
    flags += ["--texts", str(texts), "--n", "24", "--rounds", "2", "--dtype", "float32"]
    bench.main(["encode", *flags, "--json", str(out), "--peer", *peers])
    result = json.loads(out.read_text())
    assert list(result["peers"]) == peers
    for measured in result["peers"].values():
        assert measured["cosine_min"] > 1 - 1e-5
        ratios = np.array(measured["seconds"]) / result["ours"]["seconds"]
        np.testing.assert_allclose(measured["ratio"], np.median(ratios))


@pytest.mark.slow
def test_a_training_step_is_measured_and_the_peer_has_the_same_loss(small, tmp_path, data):
    out = tmp_path / "bench.json"
    flags = ["--model", "random:opt-small", "--tokenizer", str(data / "weights/opt-tokenizer")]
    flags += ["--batch", "8", "--rounds", "2", "--dtype", "float32", "--json", str(out)]
    flags += ["--profile", str(tmp_path / "trace")]
    bench.main(["train", *flags, "--dropout", "0", "--base-dropout", "0", "--peer"])
    result = json.loads(out.read_text())
    assert len(result["ours"]["seconds"]) == len(result["peers"]["peft"]["seconds"]) == 2
    first_ours, first_theirs = result["ours"]["losses"][0], result["peers"]["peft"]["losses"][0]
    np.testing.assert_allclose(first_ours, first_theirs, rtol=1e-4)
    assert scopes(tmp_path / "trace") == {"prefix", "attention", "mlp", "pool", "loss"}
