"""The command from flags to files, most of it in this process, kills in real ones."""

import io
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from prompteol_jax import Embedder, clean_sentence, progress
from prompteol_jax.cli import encode as encode_command
from prompteol_jax.cli import main as cli
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import NotFinite
from prompteol_jax.models import tiny
from prompteol_jax.text import prompt
from prompteol_jax.text.template import PROMPTEOL

TEXTS = [
    *("A man is playing a guitar.", "the cat sleeps", "", "A man is playing a guitar."),
    *('say "no"', "two  spaces", "😀", "the dog runs", "word " * 600),
]


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """Leave standard error to the closing line, on a slow machine too."""
    monkeypatch.setattr(progress, "EVERY", float("inf"))


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", dtype="float32")


@pytest.fixture
def loaded(embedder, monkeypatch):
    """Lets every command have one model, and notes for which dtype it was asked."""
    asked = []

    def load(options, default_dtype, mesh=None):
        asked.append(options.dtype or default_dtype)
        return embedder

    monkeypatch.setattr(ModelOptions, "load", load)
    return asked


@pytest.fixture
def unloadable(monkeypatch):
    def load(options, default_dtype, mesh=None):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ModelOptions, "load", load)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    return path


def encode(texts, output, *flags):
    cli.main(["encode", "--model", "tiny", "--input", str(texts), "--output", str(output), *flags])


def refused(capsys, call, *arguments):
    """Runs a call that must fail and returns its one line of error."""
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("prompteol: error: ")
    assert line.count("\n") == 1 and line.endswith("\n")
    return line


@pytest.mark.first("100")
@pytest.mark.parametrize("rows", ["2", "100"])
def test_encode_writes_what_the_embedder_gives_in_input_order(
    texts, tmp_path, loaded, embedder, capsys, rows
):
    output = tmp_path / "vectors.npy"
    encode(texts, output, "--shard-rows", rows)
    vectors = np.load(output)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 128))
    np.testing.assert_array_equal(vectors, embedder.encode(TEXTS))
    assert loaded == ["bfloat16"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "vectors.npy"]
    distinct = {"2": 9, "100": 8}[rows]
    out, closing = capsys.readouterr()
    assert out == ""
    assert closing.startswith(
        f"{output}: float32 [9, 128]; 9 encoded, {distinct} of them distinct within their shards, "
        "1 cut to 512 tokens, "
    )
    assert " sentences/s, " in closing and closing.endswith(" compiled shapes\n")


def test_clean_and_normalize(texts, tmp_path, loaded, embedder):
    encode(texts, tmp_path / "a.npy", "--clean")
    cleaned = embedder.encode([clean_sentence(text) for text in TEXTS])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), cleaned)
    encode(texts, tmp_path / "b.npy", "--normalize")
    expected = embedder.encode(TEXTS, normalize=True)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), expected)


def test_parquet_and_shards_hold_the_same_vectors(texts, tmp_path, loaded, embedder):
    expected = embedder.encode(TEXTS)
    encode(texts, tmp_path / "a.parquet", "--shard-rows", "4")
    column = parquet.read_table(tmp_path / "a.parquet")["embedding"]
    np.testing.assert_array_equal(np.array(column.to_pylist(), np.float32), expected)
    encode(texts, tmp_path / "vectors", "--shard-rows", "4")
    names = ["manifest.json", "shard-00000.npy", "shard-00001.npy", "shard-00002.npy"]
    assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == names
    shards = [np.load(tmp_path / "vectors" / name) for name in names[1:]]
    np.testing.assert_array_equal(np.concatenate(shards), expected)
    settings = json.loads((tmp_path / "vectors" / "manifest.json").read_text())["settings"]
    assert settings["prompt"] == 'This sentence : "{}" means in one word:"'
    assert (settings["model"], settings["template"]) == ("tiny", "eol")


def test_standard_input_gives_the_vectors_of_the_file(texts, tmp_path, loaded, monkeypatch):
    encode(texts, tmp_path / "a.npy")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts.read_bytes())))
    encode("-", tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_no_texts_give_no_rows(tmp_path, loaded):
    (tmp_path / "texts.txt").touch()
    encode(tmp_path / "texts.txt", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").shape == (0, 128)


def test_invalid_utf8_stands_in_the_closing_line(tmp_path, loaded, embedder, capsys):
    (tmp_path / "texts.txt").write_bytes(b"a\xff\r\nb\n")
    encode(tmp_path / "texts.txt", tmp_path / "a.npy")
    assert "float32 [2, 128]; 1 with invalid UTF-8, 2 encoded" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), embedder.encode(["a\ufffd", "b"]))


def test_what_is_done_is_not_done_again(texts, tmp_path, loaded, embedder, capsys):
    folder = tmp_path / "vectors"
    encode(texts, folder, "--shard-rows", "2")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    encode(texts, folder, "--shard-rows", "2", "--mesh", "2x1", "--batch-tokens", "64")
    assert len(loaded) == 1
    assert "5 of 5 shards were there, nothing left to encode" in capsys.readouterr().err
    (folder / "shard-00001.npy").unlink()
    (folder / "shard-00004.npy").write_bytes(b"damaged")
    encode(texts, folder, "--shard-rows", "2")
    assert len(loaded) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    closing = capsys.readouterr().err
    assert "3 of 5 shards were there, 2 damaged shards anew, 3 encoded" in closing


def test_a_failure_keeps_the_finished_shards(
    texts, tmp_path, loaded, embedder, monkeypatch, capsys
):
    output = tmp_path / "a.npy"
    whole = embedder.encode(TEXTS)
    calls = []

    def failing(sentences, **settings):
        calls.append(sentences)
        if len(calls) == 3:
            raise NotFinite("1 vectors are not finite")
        return Embedder.encode(embedder, sentences, **settings)

    monkeypatch.setattr(embedder, "encode", failing)
    line = refused(capsys, encode, texts, output, "--shard-rows", "2")
    assert line == "prompteol: error: 1 vectors are not finite\n"
    assert not output.exists()
    encode(texts, output, "--shard-rows", "2")
    assert calls[3:] == [TEXTS[4:6], TEXTS[6:8], TEXTS[8:]]
    assert not output.with_name("a.npy.parts").exists()
    np.testing.assert_array_equal(np.load(output), whole)


def test_an_interrupt_keeps_the_finished_shards_and_says_so(
    texts, tmp_path, loaded, embedder, monkeypatch, capsys
):
    calls = []

    def interrupted(sentences, **settings):
        calls.append(sentences)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Embedder.encode(embedder, sentences, **settings)

    monkeypatch.setattr(embedder, "encode", interrupted)
    with pytest.raises(SystemExit) as stopped:
        encode(texts, tmp_path / "v", "--shard-rows", "2")
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    kept = re.search(r"(\d) of 5 shards are kept in .*v; repeat the command to go on\n", said)
    assert kept and len(list((tmp_path / "v").glob("shard-*.npy"))) >= int(kept[1]) >= 1


def test_a_mounted_volume_in_a_folder_of_others_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    writable = {tmp_path / "volume": True, tmp_path: False}
    monkeypatch.setattr(encode_command.os, "access", lambda path, mode: writable[path])
    assert encode_command.Output.parse(tmp_path / "volume").unwritable() is None
    told = encode_command.Output.parse(tmp_path / "v.npy").unwritable()
    assert told == f"the folder {tmp_path} of --output cannot be written to"
    writable.update({tmp_path / "volume": False, tmp_path: True})
    told = encode_command.Output.parse(tmp_path / "volume").unwritable()
    assert told == f"the folder {tmp_path / 'volume'} of --output cannot be written to"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "float32"], "dtype was 'bfloat16' and is now 'float32'"),
        (["--template", "none"], "prompt was 'This sentence "),
        (["--clean", "--normalize"], "clean was False and is now True; normalize was False"),
        (["--layer", "1", "--pooling", "mean"], "layer was None and is now 1; pooling was 'last'"),
        (["--shard-rows", "3"], "shard_rows was 2 and is now 3. Repeat"),
    ],
)
def test_a_run_with_other_settings_is_refused(texts, tmp_path, loaded, capsys, flags, message):
    encode(texts, tmp_path / "v", "--shard-rows", "2")
    capsys.readouterr()
    line = refused(capsys, encode, texts, tmp_path / "v", "--shard-rows", "2", *flags)
    assert message in line and "--overwrite" in line
    assert len(loaded) == 1


def test_other_weights_under_the_same_name_are_refused(data, texts, tmp_path, loaded, capsys):
    source = data / "weights" / "tinystories-656k"
    model = tmp_path / "model"
    model.mkdir()
    for path in source.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    encode(texts, tmp_path / "v", "--model", str(model))
    encode(texts, tmp_path / "v", "--model", str(source))  # the same weights elsewhere
    assert len(loaded) == 1
    capsys.readouterr()
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    line = refused(capsys, encode, texts, tmp_path / "v", "--model", str(model))
    assert "weights.model.safetensors was '" in line


def test_texts_that_change_between_two_readings_are_refused(
    texts, tmp_path, loaded, embedder, capsys, monkeypatch
):
    def load(options, default_dtype, mesh=None):
        texts.write_text(texts.read_text(encoding="utf-8").replace("cat", "dog"), encoding="utf-8")
        return embedder

    monkeypatch.setattr(ModelOptions, "load", load)
    line = refused(capsys, encode, texts, tmp_path / "a.npy")
    assert "texts.txt has changed while it was encoded; start again" in line


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("source", "output", "flags", "message"),
    [
        ("none.txt", "a.npy", [], "no input file none.txt; give a file (.txt, .jsonl, .csv, "),
        ("texts.doc", "a.npy", [], "input texts.doc has the unknown suffix '.doc'"),
        ("body.csv", "a.npy", [], "body.csv has no column 'text'; its columns: id, body"),
        ("texts.txt", "none/a.npy", [], "the folder none of --output does not exist; make it"),
        ("texts.txt", "a.txt", [], "a.txt has the unknown suffix '.txt'; give .npy, .parquet, or"),
        ("texts.txt", "old.npy", [], "--output old.npy exists; --overwrite replaces it"),
        ("texts.txt", "README", [], "README is a file; a name without a suffix means a folder"),
        ("texts.txt", "full", [], "folder full holds other files (thesis.tex)"),
        ("texts.txt", "full", ["--overwrite"], "folder full holds other files (thesis.tex)"),
        ("texts.txt", "-", [], "--output - is no file"),
        ("a.parquet", "a.parquet", ["--overwrite"], "--output a.parquet is the input"),
        ("texts.txt", "none/a", ["--shard-rows", "0"], "0 must be at least 1; the folder none"),
        ("texts.txt", "a.npy", ["--template", "eo"], "eo"),
        ("texts.txt", "a.npy", ["--mesh", "4by2"], "4by2"),
        ("texts.txt", "a.npy", ["--model", "no/where/here"], "no/where/here"),
        ("texts.txt", "a.npy", ["--adapter", "./none"], "none"),
        ("texts.txt", "a.npy", ["--processes", "2"], "--process need --coordinator HOST:PORT"),
        ("texts.txt", "a.npy", ["--coordinator", "h:1"], "h:1 needs --processes N and --process I"),
        ("-", "a.npy", ["--coordinator", "h:1"], "--input - reaches one process only"),
    ],
)
def test_wrong_inputs_are_refused_before_the_model_is_loaded(
    texts, tmp_path, monkeypatch, capsys, source, output, flags, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("texts.doc", "old.npy", "README", "a.parquet"):
        Path(name).write_text("old")
    Path("body.csv").write_text("id,body\n1,x\n")
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(capsys, encode, source, output, *flags)
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("old.npy").read_text() == "old"


def test_overwrite_replaces_an_output(texts, tmp_path, loaded, embedder):
    output = tmp_path / "a.npy"
    output.write_text("old")
    encode(texts, output, "--overwrite")
    np.testing.assert_array_equal(np.load(output), embedder.encode(TEXTS))


def test_words_prints_the_most_likely_tokens(tmp_path, loaded, embedder, capsys):
    output = tmp_path / "words.json"
    odd = "b[/]racket"
    cli.main(["words", "--model", "tiny", "the cat", odd, "-k", "3", "--json", str(output)])
    result = json.loads(output.read_text())
    assert (result["model"], result["template"], result["dtype"]) == ("tiny", "eol", "float32")
    shown = capsys.readouterr().out
    for text, entry in zip(["the cat", odd], result["texts"], strict=True):
        assert entry["text"] == text
        ranked = [(word["token"], word["probability"]) for word in entry["words"]]
        assert ranked == embedder.words(text, 3)
        assert text in shown
        for token, probability in ranked:
            rows = [line for line in shown.splitlines() if f" {token!r} " in line]
            assert any(f"{probability:.4f}" in row for row in rows)
    assert loaded == ["float32"]


@pytest.mark.usefixtures("unloadable")
def test_words_refuses_nothing_to_show(capsys):
    line = refused(capsys, cli.main, ["words", "--model", "tiny", "a", "-k", "0"])
    assert "--k 0 must be at least 1" in line
    assert "give one text or more" in refused(capsys, cli.main, ["words", "--model", "tiny"])


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "1"], "words need the last layer and the last token: --layer -1"),
        (["--layer", "-2"], "words need the last layer and the last token: --layer -1"),
        (["--layer", "3"], "layer 3 does not exist: allowed are 1 to 2, or -1 to -2"),
        (["--pooling", "mean"], "the last token: --layer -1, --pooling last"),
    ],
)
def test_words_refuses_what_no_head_reads_before_the_model_is_loaded(flags, message, capsys, data):
    for model in ("tiny", str(data / "weights" / "tinystories-656k")):
        line = refused(capsys, cli.main, ["words", "--model", model, "a", *flags])
        assert message in line


def test_words_takes_the_last_layer_by_either_number(loaded, capsys):
    for layer in ("2", "-1"):
        cli.main(["words", "--model", "tiny", "the cat", "--layer", layer])
    assert len(loaded) == 2


@pytest.mark.usefixtures("unloadable")
def test_show_prints_the_prompt_without_weights(capsys, data):
    cli.main(["show", "--model", "tiny", "the cat"])
    expected = prompt.show(PROMPTEOL, tiny.tiny_tokenizer(), "the cat")
    assert capsys.readouterr().out == f"{expected}\n"
    cli.main(["show", "--model", str(data / "weights" / "tinystories-656k"), "the cat"])
    assert capsys.readouterr().out.startswith('\'This sentence : "the cat" means in one word:"\'')
    assert "unknown" in refused(
        capsys, cli.main, ["show", "--model", "tiny", "--template", "x", "a"]
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--help"], ["encode", "words", "show"]),
        (["encode", "--help"], ["--model", "--input", "--output", "--clean", "--mesh", "one \\r"]),
        (["words", "--help"], ["--model", "-k INT", "--json", "TEXT ..."]),
        (["show", "--help"], ["--model", "--template", "TEXT"]),
    ],
)
def test_help_explains_without_loading_jax(argv, expected):
    code = (
        "import sys\nfrom prompteol_jax.cli import main as cli\ntry:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit as stopped:\n    assert stopped.code == 0\n"
        "assert not {'jax', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for flag in expected:
        assert flag in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    shown, reading = os.pipe()
    os.close(shown)
    done = subprocess.run(
        [sys.executable, "-m", "prompteol_jax.cli", "--help"],
        stdout=reading,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(reading)
    assert (done.returncode, done.stderr) == (1, b"")


def command(texts, output, *flags):
    flags = ["--model", "tiny", "--input", texts, "--output", output, "--shard-rows", "50", *flags]
    return [sys.executable, "-m", "prompteol_jax.cli", "encode", *flags]


@pytest.fixture
def many(tmp_path):
    words = random.Random(0)
    lines = [" ".join(words.choices(tiny.WORDS, k=1 + n % 9)) for n in range(3000)]
    path = tmp_path / "many.txt"
    path.write_text("\n".join(lines))
    return path


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_resumed_gives_the_vectors_of_an_undisturbed_run(many, tmp_path, embedder):
    output = tmp_path / "vectors.npy"
    arguments = command(many, output, "--dtype", "float32")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    with process.stderr:
        wait_for(tmp_path / "vectors.npy.parts" / "shard-00003.npy", process)
        process.kill()
        assert process.wait() == -9
    assert not output.exists()
    resumed = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert " of 60 shards were there" in resumed.stderr
    np.testing.assert_array_equal(np.load(output), embedder.encode(many.read_text().split("\n")))


@pytest.mark.slow
def test_killed_at_twenty_random_moments_gives_the_same_file(many, tmp_path):
    alone, killed = tmp_path / "alone.npy", tmp_path / "killed.npy"
    start = time.perf_counter()
    subprocess.run(command(many, alone), check=True)
    seconds = time.perf_counter() - start
    moments = random.Random(1)
    kills = 0
    while kills < 20:
        if killed.exists():
            assert killed.read_bytes() == alone.read_bytes()
            killed.unlink()
        process = subprocess.Popen(command(many, killed))
        try:
            process.wait(moments.random() * seconds * 1.2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    subprocess.run(command(many, killed, "--overwrite"), check=True)
    assert killed.read_bytes() == alone.read_bytes()


@pytest.mark.huge
def test_a_million_short_texts_stay_under_two_gigabytes(tmp_path):
    words = random.Random(0)
    with (tmp_path / "texts.txt").open("w") as file:
        for _ in range(1_000_000):
            file.write(" ".join(words.choices(tiny.WORDS, k=words.randint(3, 9))) + "\n")
    code = (
        "import resource, sys\nfrom prompteol_jax.cli import main as cli\ncli.main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    flags = ["--model", "tiny", "--input", tmp_path / "texts.txt", "--output", tmp_path / "a.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, "encode", *flags], capture_output=True, text=True, check=True
    )
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 2_000_000
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (1_000_000, 128)
